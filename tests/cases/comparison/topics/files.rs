//! What programs do with the files of their root.

use crate::comparison::table::Group;

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "the root",
        |_| {},
        &[
            ("listing", "ls -a / | sort"),
            ("directories", "stat -c '%n %a %u %g' / /bin /tmp /etc /root /var"),
            ("a file", "echo one >/f; cat /f; stat -c '%s %a %h %u' /f"),
            ("appending", "echo two >>/f; cat /f"),
            ("a hole", "dd if=/f of=/hole bs=1 seek=1000000 2>/dev/null; stat -c %s /hole; tail -c 4 /hole"),
            ("truncating", "truncate -s 3 /f; cat /f; echo"),
            ("hard links", "ln /f /g; stat -c %h /f; rm /f; cat /g; stat -c %h /g; echo"),
            ("symbolic links", "ln -s /none /l; readlink /l; cat /l"),
            ("a link to itself", "ln -s me /me; cat /me"),
            ("renaming over a file", "echo a >/ra; echo b >/rb; mv /ra /rb; cat /rb; ls /ra"),
            ("renaming a directory", "mkdir -p /d1/d2; touch /d1/d2/f; mv /d1 /d3; ls -R /d3"),
            ("a directory that is not empty", "rmdir /d3"),
            ("a file is no directory", "ls /g/x; mkdir /g"),
            ("a directory is no file", "cat /tmp"),
            ("removing in use", "exec 5<>/u; echo used >&5; rm /u; cat /proc/self/fd/5"),
            ("modes", "touch /m; for m in 0 644 4755 2755 1777; do chmod $m /m; stat -c %a /m; done"),
            ("owners", "touch /o; chown 1:2 /o; stat -c '%u %g' /o; chown :3 /o; stat -c '%u %g' /o"),
            ("a set-id bit goes with the owner", "touch /s; chmod 6755 /s; chown 5 /s; stat -c %a /s"),
            ("a group is inherited", "mkdir /sg; chgrp 9 /sg; chmod 2755 /sg; touch /sg/f; mkdir /sg/d; stat -c '%g %a' /sg/f /sg/d"),
            ("times", "touch -d '2001-02-03 04:05:06' /t; stat -c '%X %Y' /t"),
            ("two hundred files", "mkdir /many; for i in $(seq 200); do : >/many/$i; done; ls /many | wc -l; rm -r /many"),
            ("a fifo", "mkfifo /fifo; (echo through >/fifo &); cat /fifo"),
            ("a socket", "timeout 5 nc -l -U /socket & for i in 1 2 3 4 5 6 7 8 9; do [ -S /socket ] && break; sleep 0.3; done; echo hi | timeout 5 nc local:/socket >/dev/null; [ -S /socket ] && echo socket"),
            ("long names", "touch /$(printf '%0255d' 0) && echo made; touch /$(printf '%0256d' 0)"),
            ("strange names", "touch '/new\nline' '/\u{1f980}' '/ '; ls / | wc -l"),
            ("a megabyte and its sum", "yes | head -c 1048576 >/big; md5sum /big; cp /big /big2; cmp /big /big2 && echo same"),
            ("running what was just written", "cp /bin/busybox /busybox-new; /busybox-new echo runs"),
            ("writing what runs", "cp /bin/busybox /busybox-run; /busybox-run sleep 2 & sleep 0.5; echo x >/busybox-run; wait"),
            ("syncing", "echo x >/synced; sync && echo done"),
            ("a loop by mount is refused", "mount -o loop /big /tmp"),
            ("free space is told", "df / >/dev/null && echo told"),
            ("temporary directories", "d=$(mktemp -d) && stat -c %a $d && rmdir $d"),
        ],
    )
    .afterwards("cd ../upper; stat -c '%n %F %u %g %a %s' g o s m t sg sg/f fifo l hole rb | sort; readlink l"),
];
