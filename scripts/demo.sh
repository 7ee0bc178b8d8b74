# A guest in a network namespace of its own, for demonstrations: start_guest, check, finish. Sourced by demo-*.sh.
space=minivmm-$$
tap=tap0
host_address=10.0.0.1
guest_address=10.0.0.2
log=$(mktemp)
vmm_pid=
failures=0
files=("$log")

cleanup() {
  if [ -n "$vmm_pid" ] && kill -0 "$vmm_pid" 2>/dev/null; then
    kill "$vmm_pid"
    wait "$vmm_pid" 2>/dev/null || true
  fi
  ip netns delete "$space" 2>/dev/null || true
  rm -f "${files[@]}"
}
trap cleanup EXIT

inside() { ip netns exec "$space" "$@"; }

# start_guest ARGUMENT...: boots with one tap in the new namespace, console into the log.
start_guest() {
  ip netns add "$space"
  inside ip link set lo up
  inside ip tuntap add "$tap" mode tap
  inside ip address add "$host_address/24" dev "$tap"
  inside ip link set "$tap" up
  ip netns exec "$space" "$minivmm" run --net "tap=$tap" "$@" </dev/null >"$log" 2>&1 &
  vmm_pid=$!
}

# wait_for_line TEXT SECONDS: until the guest's console says TEXT.
wait_for_line() {
  local start=$SECONDS
  until grep -q -- "$1" "$log"; do
    kill -0 "$vmm_pid" 2>/dev/null || { tail -n 20 "$log" >&2; die "the guest ended before it said '$1'"; }
    [ $((SECONDS - start)) -lt "$2" ] || { tail -n 20 "$log" >&2; die "no '$1' from the guest within $2 s"; }
    [ ! -t 1 ] || printf '\r\033[K    %d s' $((SECONDS - start))
    sleep 0.2
  done
  [ ! -t 1 ] || printf '\r\033[K'
}

# check WHAT EXPECTED COMMAND...: runs a client in the namespace and compares what it prints.
check() {
  local what=$1 expected=$2 got
  shift 2
  got=$(inside timeout 60 "$@" 2>&1) || true
  if [ "$got" = "$expected" ]; then
    printf '  ok    %-34s %s\n' "$what" "${got:0:60}"
  else
    printf '  WRONG %-34s got "%s", expected "%s"\n' "$what" "${got:0:200}" "$expected"
    failures=$((failures + 1))
  fi
}

finish() {
  [ "$failures" -eq 0 ] || die "$failures client(s) got a wrong answer"
  say "every client got its right answer"
  if [ -t 0 ] && [ -t 1 ]; then
    echo "The guest goes on serving. Try:  sudo ip netns exec $space redis-cli -h $guest_address"
    read -r -p "Press Enter to end it. " _
  fi
}
