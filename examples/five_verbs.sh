#!/bin/sh
# Five verbs for a queue in a database: assign, dump, send one by its id, send all, loopback.
# five_verbs.sh STORE RELAY
set -eu
cat > outmail.toml <<END
store = "$1"
relay = "$2"
from = "robot@example.org"
[loopback]
address = "loop@example.org"
mode = "message-id"
END

first=$(printf 'Subject: first\nMessage-ID: <own@example.org>\n\nhello\n' | outmail send --raw you@example.org)
second=$(echo "hello" | outmail send -s "second" you@example.org)

outmail loopback --assign "$first"           # a Message-ID by which it is known; a second call changes nothing
outmail loopback --assign "$first"
outmail show --raw "$first"                  # dump: exactly what the mail server will get
outmail run --only "$first"                  # send one by its id
outmail run --once                           # send all

# What the alias `loop: "|outmail loopback"` does with a copy that comes home:
outmail show --raw "$first" | outmail loopback
outmail loopback stats
outmail events
