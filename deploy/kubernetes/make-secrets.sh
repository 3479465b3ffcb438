#!/usr/bin/env bash
# Make the certificates and tokens that base/kustomization.yaml turns into Secrets, in base/secrets, which git ignores.
#
#   deploy/kubernetes/make-secrets.sh [NAMESPACE]      default: subbatch
#
# To exchange them (certificates are good for a year): delete base/secrets, call this and `kubectl apply -k` again. Mounted
# files change within a minute or so; the selector reads them at the next connection, and no pod is restarted.
# In production let cert-manager or your own CA write the same Secrets instead.
set -euo pipefail
umask 077
namespace=${1:-subbatch}
secrets=$(dirname "$0")/base/secrets
if [[ -e $secrets ]]; then
  echo "$secrets is there already: delete it first, if the old certificates and tokens are to be worthless" >&2
  exit 1
fi
selector-server certs --days 365 --out "$secrets" --host selector --host "selector.$namespace" \
  --host "selector.$namespace.svc" --host "selector.$namespace.svc.cluster.local" >/dev/null
for name in trainer metrics; do
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$secrets/$name.token"
  echo "$name:$(<"$secrets/$name.token")" >>"$secrets/tokens"
done
echo "wrote $secrets"
