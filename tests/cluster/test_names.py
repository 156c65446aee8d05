"""Names on a cluster are valid for every name of a run, and differ if the runs do."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.names import object_name

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RUN_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", fullmatch=True)
TEXTS = st.text(max_size=60)


@settings(deadline=None)
@given(TEXTS | RUN_NAMES, TEXTS)
def test_every_name_is_a_dns_1035_label_of_at_most_47_characters(name, storage):
    made = object_name(name, storage)
    assert DNS_1035.fullmatch(made) and len(made) <= 47


@settings(deadline=None)
@given(st.tuples(RUN_NAMES, TEXTS), st.tuples(RUN_NAMES, TEXTS))
def test_two_runs_have_two_names(one, other):
    assert (object_name(*one) == object_name(*other)) == (one == other)


def test_what_a_hash_covers_is_not_shifted_between_name_and_storage():
    assert object_name("run", "a", "b") != object_name("run", "ab")


def test_the_name_of_the_run_can_be_read():
    assert re.fullmatch(r"tips-b14-web-[0-9a-f]{8}", object_name("TIPS_B14..web", "s3://bucket"))
    assert re.fullmatch(r"run-[0-9a-f]{8}", object_name("2024", "s3://bucket"))
    assert re.fullmatch(r"a{38}-[0-9a-f]{8}", object_name("a" * 99, "s3://bucket"))
