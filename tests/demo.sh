#!/bin/sh
# The three pipelines that `make demo` shows: xchat is on PATH, and its environment names a server.
set -eu
cd "$(dirname "$0")"

echo "${XCHAT_MODEL:-grok-4} answers at ${XCHAT_BASE_URL:-https://api.x.ai/v1}."

show() {
    printf '\n$ %s\n' "$1"
    sh -c "$1" </dev/null
}

show 'cat article.txt | xchat -s "Summarize the text in one sentence."'
show 'cat article.txt | xchat -s "Summarize the text in one sentence." |
    xchat "Write a title of at most six words for the text."'
show './capitals.yaml "And of Italy?"'
