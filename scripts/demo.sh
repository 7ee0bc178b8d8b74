# Guests in a network namespace of its own, for demonstrations: start, wait_for, check, finish. Sourced by demo-*.sh.
space=minivmm-$$
tap=tap0
host_address=10.0.0.1
guest_address=10.0.0.2
logs=$(mktemp -d)
pids=()
failures=0
files=(-r "$logs")

cleanup() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  ip netns delete "$space" 2>/dev/null || true
  rm -f "${files[@]}"
}
trap cleanup EXIT

inside() { ip netns exec "$space" "$@"; }

make_space() {
  ip netns add "$space"
  inside ip link set lo up
}

make_tap() {
  inside ip tuntap add "$1" mode tap
  inside ip link set "$1" up
}

# make_bridge TAP...: a namespace with taps on one bridge, where the clients are as well.
make_bridge() {
  make_space
  inside ip link add bridge0 type bridge
  inside ip address add "$host_address/24" dev bridge0
  inside ip link set bridge0 up
  for tap in "$@"; do
    make_tap "$tap"
    inside ip link set "$tap" master bridge0
  done
}

# start NAME ARGUMENT...: a minivmm in the namespace; what it and its guest say goes to the log of that name.
start() {
  local name=$1
  shift
  : >"$logs/$name" # waited for at once
  ip netns exec "$space" "$minivmm" "$@" </dev/null >"$logs/$name" 2>&1 &
  eval "pid_$name=$!"
  pids+=("$!")
}

# start_guest ARGUMENT...: boots with one tap in a new namespace.
start_guest() {
  make_space
  make_tap "$tap"
  inside ip address add "$host_address/24" dev "$tap"
  start guest run --net "tap=$tap" "$@"
}

# How many times longer than usual to wait for something; for hosts that are emulated.
patience=${MINIVMM_TEST_PATIENCE:-1}

# wait_for NAME TEXT SECONDS: until the log of NAME has TEXT.
wait_for() {
  local start=$SECONDS pid="pid_$1" limit=$(($3 * patience))
  until grep -q -- "$2" "$logs/$1"; do
    kill -0 "${!pid}" 2>/dev/null || { tail -n 20 "$logs/$1" >&2; die "$1 ended before it said '$2'"; }
    [ $((SECONDS - start)) -lt "$limit" ] || { tail -n 20 "$logs/$1" >&2; die "no '$2' from $1 within $limit s"; }
    [ ! -t 1 ] || printf '\r\033[K    %d s' $((SECONDS - start))
    sleep 0.2
  done
  [ ! -t 1 ] || printf '\r\033[K'
}

now() { echo $(($(date +%s%N) / 1000000)); }

# How far the counting client is.
counted() { if [ -e "$folder/counted" ]; then wc -l <"$folder/counted"; else echo 0; fi; }

wait_for_count() {
  local start=$SECONDS
  until [ "$(counted)" -ge "$1" ]; do
    [ $((SECONDS - start)) -lt $((60 * patience)) ] || die "the client got only $(counted) replies within $((60 * patience)) s"
    sleep 0.05
  done
}

# kill_and_time NAME: SIGKILL, and how long the counting client was without a reply.
kill_and_time() {
  local pid="pid_$1" began before
  before=$(counted)
  began=$(now)
  kill -KILL "${!pid}"
  wait "${!pid}" 2>/dev/null || true
  pids=(${pids[@]/#${!pid}/})
  # A reply may have been on its way.
  wait_for_count $((before + 2))
  printf '  ok    %-34s %s\n' "SIGKILL of $1" "the client's next replies came within $(($(now) - began)) ms"
}

# check_file WHAT GOT EXPECTED: compares files.
check_file() {
  local difference
  if difference=$(diff "$2" "$3"); then
    printf '  ok    %s\n' "$1"
  else
    printf '  WRONG %s: %s\n' "$1" "${difference:0:300}"
    failures=$((failures + 1))
  fi
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
