source scripts/demo.sh
say "booting the lab guest (1 vCPU, 64 MiB)"
start_guest --kernel guests/lab/out/lab.elf --memory 64M --cpus 1 \
  --cmdline "service=kv,echo ip=$guest_address/24 gw=$host_address"
wait_for guest "lab: ready" 20
say "clients"
check "redis-cli PING" PONG redis-cli -h "$guest_address" ping
check "redis-cli SET" OK redis-cli -h "$guest_address" set greeting "hello from ring 3"
check "redis-cli GET" "hello from ring 3" redis-cli -h "$guest_address" get greeting
check "redis-cli INCR" 1 redis-cli -h "$guest_address" incr counter
say "redis-benchmark over TCP, 20 connections"
inside timeout 60 redis-benchmark -h "$guest_address" -c 20 -n "${MINIVMM_DEMO_REQUESTS:-20000}" -t set,get -q | tr '\r' '\n' | grep 'requests per second' ||
  failures=$((failures + 1))
finish
