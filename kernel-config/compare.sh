#!/bin/bash
# Compares the guest kernel's configuration with a host kernel's, and lists what a container can notice.
#
#   kernel-config/compare.sh HOST_CONFIG [GUEST_CONFIG]
#
# HOST_CONFIG: /boot/config-* of the host (.gz is read too); GUEST_CONFIG: by default the one build.sh left in
# target/guest. Only options of the groups below are shown: most of the others are drivers and internals.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if (($# < 1 || $# > 2)); then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
host=$1
guest=${2:-$(dirname "$here")/target/guest/vmlinux.config}

# One group a line: title | extended regular expression over option names (without CONFIG_).
groups='
modules | MODULES
cgroup controllers | CGROUP_[A-Z0-9_]+|MEMCG|CPUSETS|BLK_CGROUP[A-Z_]*|RT_GROUP_SCHED|UCLAMP_TASK_GROUP
security modules and audit | SECURITY|SECCOMP|SECURITY_(APPARMOR|SELINUX|SMACK|TOMOYO|LANDLOCK|YAMA|LOCKDOWN_LSM|IPE)|BPF_LSM|AUDIT|AUDITSYSCALL|IMA|EVM
system calls | [A-Z0-9_]*_SYSCALLS?|AIO|IO_URING|USERFAULTFD|FANOTIFY[A-Z_]*|MEMBARRIER|RSEQ|KCMP|SYSVIPC|POSIX_MQUEUE|KEYS|KEY_DH_OPERATIONS|NUMA|KEXEC(_FILE)?|BSD_PROCESS_ACCT|QUOTA|SECRETMEM|PERF_EVENTS|CHECKPOINT_RESTORE|X86_X32_ABI|IA32_EMULATION|LEGACY_VSYSCALL_[A-Z]+|WATCH_QUEUE
packet filters | NETFILTER|NF_TABLES[A-Z0-9_]*|NF_CONNTRACK|NF_NAT|IP6?_NF_IPTABLES|BRIDGE_NETFILTER|IP_SET|IP_VS
network links and tunnels | TUN|VETH|DUMMY|BRIDGE|BONDING|MACVLAN|MACVTAP|IPVLAN|VLAN_8021Q|VXLAN|GENEVE|WIREGUARD|NET_IPIP|NET_IPGRE|NET_VRF|IFB|PPP|OPENVSWITCH|IPV6_(SIT|TUNNEL)
traffic control | NET_SCHED|NET_SCH_(FQ_CODEL|HTB|TBF|NETEM|INGRESS|FQ)|NET_CLS_(BPF|U32)|NET_CLS_ACT|DEFAULT_NET_SCH
network protocols | MPTCP|TLS|IP_SCTP|XFRM_USER|INET6?_ESP|XDP_SOCKETS|TCP_CONG_BBR|IP_MROUTE|CAN|L2TP|MPLS|AF_KCM|RDS|TIPC|SMC|VSOCKETS_LOOPBACK|NET_9P
file systems | [A-Z0-9]+_FS|SQUASHFS|ISO9660_FS|NFSD|NFS_V4|AUTOFS_FS|CUSE|FS_ENCRYPTION|FS_VERITY|NTFS3_FS|EXFAT_FS|FUSE_DAX|TMPFS_QUOTA
block devices | BLK_DEV_(DM|MD|NBD|RBD|LOOP|NVME|SD)|DM_CRYPT|DM_THIN_PROVISIONING|ZRAM
memory | SWAP|ZSWAP|KSM|LRU_GEN|TRANSPARENT_HUGEPAGE_[A-Z]+|HUGETLBFS|MEM_SOFT_DIRTY|NUMA_BALANCING|DAMON|X86_5LEVEL
scheduling | PREEMPT_[A-Z]+|HZ|NO_HZ_(IDLE|FULL)|SCHED_(AUTOGROUP|CORE|CLASS_EXT|SMT)|SCHEDSTATS|CPU_FREQ|VIRT_CPU_ACCOUNTING_GEN|PSI
tracing | FTRACE|KPROBES|UPROBES|BPF_EVENTS|FUNCTION_TRACER|DEBUG_INFO_BTF|KALLSYMS_ALL|DYNAMIC_DEBUG|DEBUG_FS
cryptography by sockets | CRYPTO_USER_API_[A-Z]+
devices | KVM|PCI|ACPI|DMI|DRM|SOUND|USB|SCSI|INPUT|VT|RTC_CLASS|WATCHDOG|DEVMEM|VHOST_[A-Z]+|TCG_TPM|THERMAL|HWMON'

read_config() {
    if [[ $1 == *.gz ]]; then zcat -- "$1"; else cat -- "$1"; fi
}

for file in "$host" "$guest"; do
    [[ -r $file ]] || { printf 'compare: error: cannot read %s\n' "$file" >&2; exit 1; }
done

awk -F'|' '
    # First file: the groups. The title ends at the first bar; the rest is the expression.
    FILENAME == ARGV[1] {
        if (NF > 1) {
            title[++groups] = substr($1, 1, length($1) - 1)
            pattern[groups] = "^(" substr($0, index($0, "|") + 2) ")$"
        }
        next
    }
    /^CONFIG_[A-Za-z0-9_]+=/ {
        name = substr($0, 8, index($0, "=") - 8)
        value = substr($0, index($0, "=") + 1)
        # On the host a module is as good as built in.
        if (value == "m") value = "y"
        if (FILENAME == ARGV[2]) host[name] = value; else guest[name] = value
        names[name]
    }
    END {
        for (g = 1; g <= groups; g++) {
            absent = added = changed = ""
            for (name in names) {
                if (name !~ pattern[g]) continue
                if (!(name in guest)) absent = absent " " name
                else if (!(name in host)) added = added " " name
                else if (host[name] != guest[name]) changed = changed " " name "=" guest[name] "(host:" host[name] ")"
            }
            if (absent added changed == "") continue
            print title[g]
            if (absent != "") print "  host only: " sorted(absent)
            if (added != "") print "  guest only:" sorted(added)
            if (changed != "") print "  differs:   " sorted(changed)
        }
    }
    function sorted(words,   list, n, i, j, swap, text) {
        n = split(words, list, " ")
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
                swap = list[j]; list[j] = list[j - 1]; list[j - 1] = swap
            }
        for (i = 1; i <= n; i++) text = text " " list[i]
        return text
    }
' <(printf '%s\n' "$groups") <(read_config "$host") <(read_config "$guest")
