source scripts/demo.sh
say "booting Linux (1 vCPU, 128 MiB; where KVM interprets kernel code this takes 10 to 60 s)"
start_guest --kernel guests/linux/out/vmlinux --initrd guests/linux/out/initramfs.cpio --memory 128M --cpus 1 \
  --disk guests/linux/out/disk.img --cmdline "$(cat guests/linux/out/cmdline) ip=$guest_address::$host_address:255.255.255.0::eth0:off"
wait_for_line "minivmm: services started" 180
say "clients"
check "redis-cli PING" PONG redis-cli -h "$guest_address" ping
check "redis-cli SET" OK redis-cli -h "$guest_address" set greeting "hello from Linux"
check "redis-cli GET" "hello from Linux" redis-cli -h "$guest_address" get greeting
check "curl index.html" "$(cat guests/linux/disk/www/index.html 2>/dev/null)" curl -s "http://$guest_address/index.html"
finish
