//! The FUSE operations of a [`Tree`]: checks, then the Vfs.
//!
//! Operations that are missing here (locks, ioctl, poll, bmap, DAX mappings) are not
//! supported: the trait's own answer makes the guest's kernel do without them. Locks in
//! particular are then kept by the guest, which is right, as no one else locks.

use super::*;

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.vfs.init(capable)
    }

    fn destroy(&self) {
        self.vfs.destroy();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        match self.vfs.lookup(ctx, parent.into(), name) {
            Ok(entry) if is_pseudo(parent) => self.stamp_below_pseudo(ctx, entry),
            Ok(entry) => Ok(self.stamp(entry)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let cache_long = self.slot(parent).is_some_and(|slot| slot.cache_long);
                if !cache_long || is_pseudo(parent) {
                    return Err(error);
                }
                // Node id 0: "there is no such name", for as long as the timeout says.
                Ok(Entry {
                    entry_timeout: CACHE_LONG,
                    ..Entry::default()
                })
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        // The guest goes on forgetting what it knew of an export after its end.
        if self.slot(inode).is_some() {
            self.vfs.forget(ctx, inode.into(), count);
        }
    }

    fn getattr(
        &self,
        ctx: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let handle = handle.filter(|_| !is_pseudo(inode));
        let (attr, timeout) = self.vfs.getattr(ctx, inode.into(), handle)?;
        let timeout = if is_pseudo(inode) {
            Duration::ZERO
        } else {
            timeout
        };
        Ok((attr, timeout))
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        check_writable(inode)?;
        self.vfs.setattr(ctx, inode.into(), attr, handle, valid)
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        if is_pseudo(inode) {
            return Err(errno(libc::EINVAL));
        }
        self.vfs.readlink(ctx, inode.into())
    }

    fn symlink(
        &self,
        ctx: &Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        check_name(name)?;
        check_writable(parent)?;
        let entry = self.vfs.symlink(ctx, linkname, parent.into(), name)?;
        Ok(self.stamp(entry))
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        check_writable(parent)?;
        let entry = self
            .vfs
            .mknod(ctx, parent.into(), name, mode, rdev, umask)?;
        Ok(self.stamp(entry))
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        check_writable(parent)?;
        let entry = self.vfs.mkdir(ctx, parent.into(), name, mode, umask)?;
        Ok(self.stamp(entry))
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        check_writable(parent)?;
        self.vfs.unlink(ctx, parent.into(), name)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        check_writable(parent)?;
        self.vfs.rmdir(ctx, parent.into(), name)
    }

    fn rename(
        &self,
        ctx: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(oldname)?;
        check_name(newname)?;
        check_writable(olddir)?;
        check_writable(newdir)?;
        check_same_export(olddir, newdir)?;
        self.vfs
            .rename(ctx, olddir.into(), oldname, newdir.into(), newname, flags)
    }

    fn link(&self, ctx: &Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        check_name(newname)?;
        check_writable(newparent)?;
        check_same_export(inode, newparent)?;
        let entry = self
            .vfs
            .link(ctx, inode.into(), newparent.into(), newname)?;
        Ok(self.stamp(entry))
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        if is_pseudo(inode) {
            return Err(errno(libc::EISDIR));
        }
        self.vfs
            .open(ctx, inode.into(), open_flags(flags), fuse_flags)
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        check_name(name)?;
        check_writable(parent)?;
        args.flags = open_flags(args.flags) | libc::O_NOFOLLOW as u32;
        let (entry, handle, options, backing) = self.vfs.create(ctx, parent.into(), name, args)?;
        Ok((self.stamp(entry), handle, options, backing))
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        if is_pseudo(inode) {
            return Err(errno(libc::EISDIR));
        }
        let inode = inode.into();
        self.vfs
            .read(ctx, inode, handle, w, size, offset, lock_owner, flags)
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        check_writable(inode)?;
        self.vfs.write(
            ctx,
            inode.into(),
            handle,
            r,
            size,
            offset,
            lock_owner,
            delayed_write,
            flags,
            fuse_flags,
        )
    }

    fn flush(&self, ctx: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        if is_pseudo(inode) {
            return Ok(());
        }
        self.vfs.flush(ctx, inode.into(), handle, lock_owner)
    }

    fn fsync(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        if is_pseudo(inode) {
            return Ok(());
        }
        self.vfs.fsync(ctx, inode.into(), datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        check_writable(inode)?;
        self.vfs
            .fallocate(ctx, inode.into(), handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        if is_pseudo(inode) {
            return Ok(());
        }
        let inode = inode.into();
        self.vfs
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        self.vfs.statfs(ctx, inode.into())
    }

    fn setxattr(
        &self,
        ctx: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        check_writable(inode)?;
        self.vfs.setxattr(ctx, inode.into(), name, value, flags)
    }

    fn getxattr(
        &self,
        ctx: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if is_pseudo(inode) {
            return Err(errno(libc::ENODATA));
        }
        let size = size.min(MAX_XATTR_LEN);
        self.vfs.getxattr(ctx, inode.into(), name, size)
    }

    fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        if is_pseudo(inode) {
            return Ok(match size {
                0 => ListxattrReply::Count(0),
                _ => ListxattrReply::Names(Vec::new()),
            });
        }
        let size = size.min(MAX_XATTR_LEN);
        self.vfs.listxattr(ctx, inode.into(), size)
    }

    fn removexattr(&self, ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        check_writable(inode)?;
        self.vfs.removexattr(ctx, inode.into(), name)
    }

    fn opendir(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        self.vfs.opendir(ctx, inode.into(), open_flags(flags))
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let size = size.min(MAX_DIRENTS_LEN);
        check_dir_offset(offset)?;
        let Some(offset) = dots::list(offset, inode, add_entry)? else {
            return Ok(());
        };
        self.vfs
            .readdir(ctx, inode.into(), handle, size, offset, add_entry)
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let size = size.min(MAX_DIRENTS_LEN);
        check_dir_offset(offset)?;
        // An entry without an inode is a name alone; the guest has these inodes already.
        let mut add_name = |entry: DirEntry| add_entry(entry, Entry::default());
        let Some(offset) = dots::list(offset, inode, &mut add_name)? else {
            return Ok(());
        };
        let mut add = |dir_entry: DirEntry, entry: Entry| {
            let entry = if is_pseudo(inode) {
                self.stamp_below_pseudo(ctx, entry)?
            } else {
                self.stamp(entry)
            };
            add_entry(dir_entry, entry)
        };
        self.vfs
            .readdirplus(ctx, inode.into(), handle, size, offset, &mut add)
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        if is_pseudo(inode) {
            return Ok(());
        }
        self.vfs.fsyncdir(ctx, inode.into(), datasync, handle)
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        if is_pseudo(inode) {
            return Ok(());
        }
        self.vfs.releasedir(ctx, inode.into(), flags, handle)
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        self.vfs.access(ctx, inode.into(), mask)
    }

    fn lseek(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        // Only the two that need the file system's knowledge; the rest is the guest's.
        if is_pseudo(inode) || !matches!(whence as i32, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(errno(libc::EINVAL));
        }
        // The Vfs leaves this one out; its backends have it.
        let local = inode & ((1 << INDEX_SHIFT) - 1);
        self.backend(inode)?
            .lseek(ctx, local, handle, offset, whence)
    }
}

/// The Vfs would say EINVAL; `mv` copies only after EXDEV.
fn check_same_export(a: u64, b: u64) -> io::Result<()> {
    if a >> INDEX_SHIFT != b >> INDEX_SHIFT {
        return Err(errno(libc::EXDEV));
    }
    Ok(())
}

/// What a guest may ask of open(2), the crate handing it on as it is: `O_PATH` would make it
/// ignore all else, `O_CREAT | O_EXCL` among it, and follow a link of the guest's anywhere;
/// `O_TMPFILE` makes files without a name.
fn open_flags(flags: u32) -> u32 {
    const ALLOWED: i32 = libc::O_ACCMODE
        | libc::O_APPEND
        | libc::O_TRUNC
        | libc::O_EXCL
        | libc::O_NONBLOCK
        | libc::O_SYNC
        | libc::O_DSYNC
        | libc::O_DIRECT
        | libc::O_NOATIME
        | libc::O_NOFOLLOW
        | libc::O_LARGEFILE
        | libc::O_DIRECTORY;
    // All of `O_TMPFILE` but the bit that is its own is `O_DIRECTORY`.
    flags & ALLOWED as u32
}

/// The crate adds one to it.
fn check_dir_offset(offset: u64) -> io::Result<()> {
    if offset == u64::MAX {
        return Err(errno(libc::EINVAL));
    }
    Ok(())
}
