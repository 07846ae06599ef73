#!/bin/sh
# A client of `perwatt serve` with nothing but curl: sh examples/client.sh cat.jpg [URL] [MODEL]; TOKEN=... where needed.
set -eu
photo=$1
url=${2:-http://127.0.0.1:8000}
model=${3:-}
call() { curl --silent --show-error --fail-with-body ${TOKEN:+--header "Authorization: Bearer $TOKEN"} "$@"; }

call "$url/v2/health/ready"
echo
if [ -z "$model" ]; then # the first that is ready
  model=$(call --request POST "$url/v2/repository/index" | sed 's/.*"name":"\([^"]*\)".*"state":"READY".*/\1/')
fi
call "$url/v2/models/$model"
echo
# curl comes again by itself when the server says 429 and after how many seconds.
call --retry 3 --header "X-Request-Timeout-Ms: 5000" --data-binary "@$photo" "$url/v2/models/$model/classify?top=5"
echo
