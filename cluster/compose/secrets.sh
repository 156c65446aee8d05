#!/usr/bin/env bash
# Makes passwords and keys for compose.yaml, once; a second call changes nothing. Then, for runs on other machines:
#   export AWS_SHARED_CREDENTIALS_FILE=cluster/compose/secrets/s3_credentials AWS_ENDPOINT_URL=http://MACHINE:8333
set -euo pipefail
umask 077
folder=$(cd "$(dirname "$0")" && pwd)/secrets
[ -e "$folder" ] && echo "$folder is there already; delete it for new ones" && exit
making=$folder.$$
mkdir "$making"
trap 'rm -rf "$making"' EXIT

random() {
    head -c "$1" /dev/urandom | od -An -tx1 | tr -d ' \n'
}

key=$(random 10) secret=$(random 24)
printf %s "$(random 24)" >"$making/postgres_password"
printf %s "$(random 24)" >"$making/grafana_password"
printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" >"$making/s3_credentials"
cat >"$making/s3_users.json" <<END
{"identities": [{"name": "team", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "$key", "secretKey": "$secret"}]}]}
END
# Containers have users of their own and mount the files as they are; the folder keeps others out.
chmod 644 "$making"/*
mv "$making" "$folder"
echo "made $folder; Grafana: user admin, password in grafana_password"
