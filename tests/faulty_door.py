"""A TCP door in front of an S3 server, for tests of a failing store."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
RESET = struct.pack("ii", 1, 0)


class FaultyDoor:
    """Passes requests on; a test may shut it, hold requests, or refuse single ones."""

    def __init__(self, endpoint_url: str) -> None:
        place = urlsplit(endpoint_url)
        self._behind = (place.hostname, place.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_shut = False
        """If set, connections are reset, including open ones."""
        self.passes = threading.Event()
        """If unset, nothing passes and nothing fails: the store is slow."""
        self.passes.set()
        self.refused: list[bytes] = []
        """Each entry refuses one request with 503: the next whose first line holds it."""
        self.requests: list[bytes] = []
        """First lines of all requests received."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.passes.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._behind) as store:
            threading.Thread(target=self._pump, args=[store, client, False], daemon=True).start()
            self._pump(client, store, True)

    def _pump(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                self.passes.wait()
                line = content.partition(b"\r\n")[0] if is_request else b""
                if line.endswith(b"HTTP/1.1"):  # not a continued body
                    self.requests.append(line)
                if self.is_shut:
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    break
                if line.endswith(b"HTTP/1.1") and self._refuses(line):
                    source.sendall(BUSY)
                    break
                target.sendall(content)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)

    def _refuses(self, line: bytes) -> bool:
        found = next((words for words in self.refused if words in line), None)
        if found is not None:
            self.refused.remove(found)
        return found is not None


@contextlib.contextmanager
def faulty_door(endpoint_url: str) -> Iterator[FaultyDoor]:
    """A door in front of the server at `endpoint_url`, for the time of the context."""
    door = FaultyDoor(endpoint_url)
    try:
        yield door
    finally:
        door.close()
