source scripts/demo.sh
out=guests/linux/out
folder=$(mktemp -d)
files+=(-r "$folder")
(umask 077 && head -c 32 /dev/urandom >"$folder/key")

make_bridge tap0 tap1 tap2
# secondary NAME TAP PORT [ARGUMENT...]: waits for a primary, with a disk of its own.
secondary() {
  local name=$1 tap=$2 port=$3
  shift 3
  truncate -s "$(stat -c %s "$out/disk.img")" "$folder/$name.img"
  start "$name" secondary --listen "127.0.0.1:$port" --key "$folder/key" --net "tap=$tap" --disk "$folder/$name.img" "$@"
  wait_for "$name" "waiting for a primary" 20
}

say "a primary and a secondary; the guest is Linux (1 vCPU, 128 MiB; where KVM interprets kernel code booting takes 10 to 60 s)"
secondary second tap1 7001 --replicate 127.0.0.1:7002
cp --sparse=always "$out/disk.img" "$folder/first.img"
start first primary --kernel "$out/vmlinux" --initrd "$out/initramfs.cpio" --memory 128M --cpus 1 \
  --net tap=tap0 --disk "$folder/first.img" --replicate 127.0.0.1:7001 --key "$folder/key" --control "$folder/first.sock" \
  --cmdline "$(cat "$out/cmdline") ip=$guest_address::$host_address:255.255.255.0::eth0:off"
wait_for first "minivmm: services started" 240
wait_for first "pair: now primary" 20

say "clients"
check "redis-cli PING" PONG redis-cli -h "$guest_address" ping
check "redis-cli SET" OK redis-cli -h "$guest_address" set greeting "hello from Linux"
check "redis-cli GET" "hello from Linux" redis-cli -h "$guest_address" get greeting
check "memcached set" STORED bash -c "exec 3<>/dev/tcp/$guest_address/11211 && printf 'set k 0 0 2\r\nhi\r\n' >&3 && head -n 1 <&3 | tr -d '\r'"
read -r sum file < <(grep -m 1 ' 1MiB' "$out/www.sha256")
check "curl, 1 MiB from nginx, SHA-256" "$sum" bash -c "curl -s http://$guest_address/${file##*/} | sha256sum | cut -d' ' -f1"
"$minivmm" status --control "$folder/first.sock" | grep -E '^(role|checkpoints|pauses|let out)' | sed 's/^/    /'

count=600
say "one redis-cli connection counts to $count, redis-benchmark writes over 3 more, and both hosts of the guest die in turn"
# redis-cli connects again without a word; the identifier of its connection shows that it has not.
{ echo CLIENT ID && printf 'INCR visits\n%.0s' $(seq $count) && echo CLIENT ID; } |
  inside timeout 170 stdbuf -oL redis-cli -h "$guest_address" >"$folder/counted" 2>&1 &
counter=$!
pids+=("$counter")
inside timeout 170 redis-benchmark -h "$guest_address" -c 3 -n 600 -t set -q >"$folder/benchmark" 2>&1 &
benchmark=$!
pids+=("$benchmark")
wait_for_count 100
kill_and_time first
wait_for second "pair: now alone" 10
say "a third host joins, and the survivor copies its guest to it while it serves"
began=$(now)
secondary third tap2 7002
wait_for second "pair: now primary" 60
printf '  ok    protected again                    after %s ms\n' $(($(now) - began))
wait_for_count $(($(counted) + 60))
kill_and_time second
wait_for third "pair: now alone" 10
wait "$counter" || true
if wait "$benchmark" && ! grep -qi error "$folder/benchmark"; then
  printf '  ok    redis-benchmark                    %s\n' "$(tr '\r' '\n' <"$folder/benchmark" | grep 'per second')"
else
  printf '  WRONG redis-benchmark: %s\n' "$(tail -c 300 "$folder/benchmark")"
  failures=$((failures + 1))
fi
connection=$(head -n 1 "$folder/counted")
check_file "redis-cli, every number from 1 to $count once, on one connection" "$folder/counted" <(echo "$connection" && seq $count && echo "$connection")
check "redis-cli GET, after both" "hello from Linux" redis-cli -h "$guest_address" get greeting
check "redis-cli GET visits" "$count" redis-cli -h "$guest_address" get visits
check "curl, 1 MiB from nginx, SHA-256" "$sum" bash -c "curl -s http://$guest_address/${file##*/} | sha256sum | cut -d' ' -f1"
finish
