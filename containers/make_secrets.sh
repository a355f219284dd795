#!/bin/sh
# Make containers/secrets, for compose.yaml: a key for clients, one for Prometheus, and Grafana's password. What is there
# stays as it is. The folder is its user's alone; the files in it can be read by all, for each container has its own user.
set -eu
umask 077
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
for name in octavo_keys octavo_metrics_key grafana_password; do
    [ -s "$folder/$name" ] && continue
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n' > "$folder/$name"
    chmod 444 "$folder/$name"
done
echo "$folder: octavo_keys opens the API, grafana_password Grafana (user admin)."
