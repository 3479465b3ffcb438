#!/usr/bin/env bash
# Make what the demo's containers read, in the folder $1, unless it is all there: model, data, configuration,
# certificates for the host name `selector`, and tokens. Whoever deletes the volume gets new ones.
set -euo pipefail
umask 077
state=$1
if [ -f "$state/ready" ]; then
  echo "$state is ready"
  exit 0
fi
train-client demo --inputs-only --out "$state/demo"
rm -rf "$state/secrets"
selector-server certs --host selector --out "$state/secrets/certs"
for name in trainer metrics; do
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$state/secrets/$name.token"
  echo "$name:$(<"$state/secrets/$name.token")" >>"$state/secrets/tokens"
done
touch "$state/ready"
