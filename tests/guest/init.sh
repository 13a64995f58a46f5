#!/bin/busybox sh
# /init of the tiny guest. What it says and understands is written in speech.py.
# Devices are watched with the shell's own words only: a process a second costs too much without KVM.

say() { echo "MCVIRT-GUEST $*"; }

memory_and_cpus() {
    local key value rest cpus
    for value in /sys/devices/system/cpu/cpu[0-9]*/online; do
        read -r cpus < "$value" && [ "$cpus" = 0 ] && echo 1 > "$value"
    done 2>/dev/null
    while read -r key value rest; do [ "$key" = MemTotal: ] && break; done < /proc/meminfo
    cpus=0
    while read -r key rest; do [ "$key" = processor ] && cpus=$((cpus + 1)); done < /proc/cpuinfo
    line="memory=$value cpus=$cpus"
}

disk_serial() {
    serial=
    if [ -e "/sys/block/$1/serial" ]; then
        read -r serial < "/sys/block/$1/serial"
    elif [ -e "/sys/block/$1/device/vpd_pg80" ]; then
        serial=$(dd if="/sys/block/$1/device/vpd_pg80" bs=1 skip=4 2>/dev/null | tr -d ' \000')
    fi
    serial=${serial:--}
}

block_device() {
    local sectors
    read -r sectors < "/sys/block/$1/size" || return 1
    case $1 in
        sr*)
            # An open without a medium fails; only an open makes the kernel look at a new one.
            if true < "/dev/$1"; then read -r sectors < "/sys/block/$1/size"; else sectors=0; fi
            line="cdrom name=$1 size=$((sectors * 512))" ;;
        *)
            eval "serial=\$serial_$1"
            [ -n "$serial" ] || { disk_serial "$1"; eval "serial_$1=\$serial"; }
            line="disk name=$1 size=$((sectors * 512)) serial=$serial" ;;
    esac
} 2>/dev/null

network_card() {
    local mac carrier=0
    read -r mac < "/sys/class/net/$1/address" || return 1
    read -r carrier < "/sys/class/net/$1/carrier" || { ip link set "$1" up; read -r carrier < "/sys/class/net/$1/carrier"; }
    [ "$carrier" = 1 ] && carrier=up || carrier=down
    line="nic name=$1 mac=$mac link=$carrier"
} 2>/dev/null

# Sets `now` to the lines of all there is, one a line; speaks of what is not in `before` as it is now.
look() {
    local path name kind line gone
    now=$'\n'
    memory_and_cpus
    heard "$line"
    for kind in vd sd sr eth; do
        for path in /sys/block/$kind* /sys/class/net/$kind*; do
            [ -e "$path" ] || continue
            name=${path##*/}
            if [ "$kind" = eth ]; then network_card "$name"; else block_device "$name"; fi && heard "$line"
        done
    done
    while read -r kind line; do
        name=${line%% *}
        [ -n "$name" ] && [ "$kind" != "memory=${kind#memory=}" ] || continue
        case $now in *$'\n'"$kind $name "*) continue ;; esac
        eval "serial_${name#name=}="
        say "gone kind=$kind $name"
    done <<END
$before
END
    before=$now
}

heard() {
    now=$now$1$'\n'
    case $before in *$'\n'"$1"$'\n'*) ;; *) say "$1" ;; esac
}

# The counter lives at 1 MiB of the first disk, if nothing but nothing or an earlier counter is there.
take_counter() {
    local word value name
    for name in vda sda vdb sdb; do
        [ -b "/dev/$name" ] || continue
        dd if="/dev/$name" of=/tmp/sector bs=512 skip=2048 count=1 2>/dev/null || continue
        read -r word boots value < /tmp/sector
        boots=${boots#boots=}
        if [ "$word" != MCVIRT ]; then
            boots=0
            [ "$(dd if="/dev/$name" bs=64k count=17 2>/dev/null | tr -d '\000' | wc -c)" = 0 ] || continue
        fi
        boots=$((boots + 1))
        counter=/dev/$name
        return
    done
}

tick() {
    ticks=$((ticks + 1))
    [ -n "$counter" ] || take_counter
    if [ -n "$counter" ]; then
        # A disk that was pulled out must not come back as a plain file in /dev.
        [ -b "$counter" ] && printf '%-511s\n' "MCVIRT boots=$boots ticks=$ticks" |
            dd of="$counter" bs=512 seek=2048 conv=notrunc,fsync 2>/dev/null || say "error cannot write to ${counter#/dev/}"
    fi
    say "tick boots=$boots ticks=$ticks"
}

leave() {
    say "$1"
    sync
    exec "$1" -f
}

obey() {
    stty -echo
    while read -r word text; do
        case $word in
            echo) say "echo $text" ;;
            report) before=; look ;;
            reboot | poweroff) leave "$word" ;;
            ?*) say "error no such command: $word" ;;
        esac
    done
}

power_button() {
    dd if="/dev/input/$1" bs=24 count=1 of=/dev/null 2>/dev/null && leave poweroff
}

export PATH=/bin
/bin/busybox mount -t devtmpfs dev /dev
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
read -r _ _ kernel _ < /proc/version
say "booted kernel=$kernel"
for module in $(cat /modules/order); do
    insmod "/modules/$module" || say "error cannot load $module"
done
for name in /sys/class/input/event*; do
    read -r button < "$name/device/name" && [ "$button" = "Power Button" ] && power_button "${name##*/}" &
done
# Looking into a drive must neither close nor lock it: the host is about to change its medium.
echo 0 > /proc/sys/dev/cdrom/autoclose
echo 0 > /proc/sys/dev/cdrom/lock
echo 1000 > /sys/module/block/parameters/events_dfl_poll_msecs

boots=0 ticks=0 counter= before=
mkfifo /tmp/never
exec 3<> /tmp/never
look
say ready
# Without the redirection a background process would read from nowhere.
obey < /dev/ttyS0 &
while :; do
    tick
    for _ in 1 2 3; do
        read -r -t 1 _ <&3
        look
    done
done
