#!/usr/bin/env bash
# Runs the embedded image in each hull that there is, in a store of its own, which it removes again.
set -euo pipefail

program=${1:?usage: demo.sh PROGRAM}
if [ "$(id -u)" != 0 ]; then
    echo "demo: a container's namespaces and mounts need root: run make demo as root" >&2
    exit 1
fi
store=$(mktemp -d -t dhow-demo.XXXXXX)
dhow() { "$program" --root "$store/root" --run "$store/run" "$@"; }
cleanup() {
    dhow system reset --force >/dev/null || echo "demo: something of $store could not be removed" >&2
    rm -rf "$store"
}
trap cleanup EXIT
show() {
    printf '\n$ dhow %s\n' "$*"
    dhow "$@"
}
# The page at an address, without any tool but the shell.
page() {
    exec 3<>"/dev/tcp/${1%:*}/${1##*:}"
    printf 'GET /json HTTP/1.0\r\n\r\n' >&3
    cat <&3
    exec 3>&-
}

hulls=(container)
for hull in "${hulls[@]}"; do
    show run --rm hello
    container=$(show run -d -p 127.0.0.1::8080 hello --http 8080 | tee /dev/stderr | tail -n 1)
    address=$(show port "$container" 8080 | tee /dev/stderr | tail -n 1)
    printf '\n$ curl http://%s/json\n' "$address"
    answer=$(page "$address")
    grep -m 1 '"hull"' <<<"$answer"
    case $answer in
    "HTTP/1.1 200 OK"*'"hull"'*) ;;
    *) echo "demo: this is not the page of the image hello: $answer" >&2; exit 1 ;;
    esac
    show stop -t 2 "$container"
done

printf '\ndemo: done: the embedded image ran as a %s, said so, and served its page through a published port.\n' \
    "${hulls[*]}"
