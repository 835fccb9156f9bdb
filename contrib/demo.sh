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
skipped=
# A microVM boots a kernel of the store's own: the lean one where `make kernel` has built it, else the distribution's.
get_kernel() {
    local lean=("${DHOW_CACHE:-target/.cache}"/kernel/*/vmlinux)
    if [ -e "${lean[0]}" ]; then
        show kernel import --name lean "${lean[0]}"
    elif ! command -v apt-get >/dev/null; then
        skipped="there is no apt to fetch a kernel with; bring one with dhow kernel import"
    else
        printf '\n$ dhow kernel install\n'
        dhow kernel install || { [ "${DHOW_SKIP_INSTALL:-0}" = 0 ] && apt-get update -qq && dhow kernel install; } ||
            skipped="no kernel could be installed (see above)"
    fi
}
get_kernel
if [ -z "$skipped" ]; then
    verdict=$(dhow doctor --format '{{.MicroVM.Ready}} {{.MicroVM.Text}}')
    [[ $verdict == true\ * ]] || skipped="this host ${verdict#false }; see dhow doctor"
fi
if [ -z "$skipped" ]; then
    hulls+=(microVM)
else
    printf '\ndemo: SKIPPED the microVM: %s\n' "$skipped"
fi

for hull in "${hulls[@]}"; do
    flags=()
    [ "$hull" = container ] || flags=(--vm)
    show run "${flags[@]}" --rm hello
    container=$(show run "${flags[@]}" -d -p 127.0.0.1::8080 hello --http 8080 | tee /dev/stderr | tail -n 1)
    address=$(show port "$container" 8080 | tee /dev/stderr | tail -n 1)
    printf '\n$ curl http://%s/json\n' "$address"
    # The workload runs; a moment later it listens.
    answer=
    for _ in {1..50}; do
        answer=$(page "$address" 2>/dev/null || true)
        [ -z "$answer" ] || break
        sleep 0.2
    done
    grep -m 2 -E '"(hull|kernel)"' <<<"$answer"
    case $answer in
    "HTTP/1.1 200 OK"*'"hull"'*) ;;
    *) echo "demo: this is not the page of the image hello: $answer" >&2; exit 1 ;;
    esac
    show stop -t 2 "$container"
done

show compare hello

printf '\ndemo: done: the embedded image ran as a %s, said so, and served its page through a published port.\n' \
    "$(sed 's/ / and as a /' <<<"${hulls[*]}")"
