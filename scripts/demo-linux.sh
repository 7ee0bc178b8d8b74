source scripts/demo.sh
out=guests/linux/out
disk=$(mktemp)
files+=("$disk")
cp --sparse=always "$out/disk.img" "$disk"
say "booting Linux (1 vCPU, 128 MiB; where KVM interprets kernel code this takes 10 to 60 s)"
start_guest --kernel "$out/vmlinux" --initrd "$out/initramfs.cpio" --memory 128M --cpus 1 --disk "$disk" \
  --cmdline "$(cat "$out/cmdline") ip=$guest_address::$host_address:255.255.255.0::eth0:off"
wait_for_line "minivmm: services started" 240
say "clients"
check "redis-cli PING" PONG redis-cli -h "$guest_address" ping
check "redis-cli SET" OK redis-cli -h "$guest_address" set greeting "hello from Linux"
check "redis-cli GET" "hello from Linux" redis-cli -h "$guest_address" get greeting
check "memcached set" STORED bash -c "exec 3<>/dev/tcp/$guest_address/11211 && printf 'set k 0 0 2\r\nhi\r\n' >&3 && head -n 1 <&3 | tr -d '\r'"
read -r sum file < <(grep -m 1 ' 1MiB' "$out/www.sha256")
check "curl, 1 MiB from nginx, SHA-256" "$sum" bash -c "curl -s http://$guest_address/${file##*/} | sha256sum | cut -d' ' -f1"
finish
