// Disk is a file system that can lose power, be slow, and be full.
//
//	disk FOLDER
//
// It covers FOLDER, for the processes of its mount namespace; the others see what is below. Writes reach that at once,
// and for each write that is not synced yet the disk keeps what it replaced. It obeys the lines of its standard input, and answers each with a line:
//
//	forget    power loss: undo each write, truncation and growth that was not synced; answers with their number
//	settle    everything counts as synced, as after the folder was replaced
//	slow MS   each write and each sync takes so many milliseconds longer
//	full 0|1  whether writes that make a file longer fail with ENOSPC
//
// Names are durable at once, as with a journal: power loss undoes no creation, renaming or removal of a file. It is the
// model of LazyFS, with which Jepsen tests databases. The end of the input ends the program.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// An undo is what a file had before a write: its size, and the bytes at an offset.
type undo struct {
	size   int64
	offset int64
	bytes  []byte
}

// A dirty file has writes that are not synced, oldest first.
type dirty struct {
	file  *os.File
	undos []undo
}

var (
	mutex sync.Mutex
	files = map[uint64]*dirty{} // by inode
	delay atomic.Int64
	full  atomic.Bool
)

// keep notes what a file has at a range, before it is replaced. The caller holds the mutex.
func keep(fd int, path string, offset, length int64) syscall.Errno {
	var stat syscall.Stat_t
	if err := syscall.Fstat(fd, &stat); err != nil {
		return fs.ToErrno(err)
	}
	one := files[stat.Ino]
	if one == nil {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fs.ToErrno(err)
		}
		one = &dirty{file: file}
		files[stat.Ino] = one
	}
	there := min(length, stat.Size-offset)
	before := undo{size: stat.Size, offset: offset}
	if there > 0 {
		before.bytes = make([]byte, there)
		if _, err := one.file.ReadAt(before.bytes, offset); err != nil {
			return fs.ToErrno(err)
		}
	}
	one.undos = append(one.undos, before)
	return fs.OK
}

// synced says that a file is on the disk as it is. The caller holds the mutex.
func synced(inode uint64) {
	if one := files[inode]; one != nil {
		one.file.Close()
		delete(files, inode)
	}
}

// forget undoes every write that is not synced, and returns their number.
func forget() (int, error) {
	mutex.Lock()
	defer mutex.Unlock()
	count := 0
	for inode, one := range files {
		for index := len(one.undos) - 1; index >= 0; index-- {
			before := one.undos[index]
			if _, err := one.file.WriteAt(before.bytes, before.offset); err != nil {
				return count, err
			}
			if err := one.file.Truncate(before.size); err != nil {
				return count, err
			}
			count++
		}
		one.file.Close()
		delete(files, inode)
	}
	return count, nil
}

func settle() {
	mutex.Lock()
	defer mutex.Unlock()
	for inode, one := range files {
		one.file.Close()
		delete(files, inode)
	}
}

func wait() { time.Sleep(time.Duration(delay.Load()) * time.Millisecond) }

// A node is a file or folder.
type node struct{ fs.LoopbackNode }

var (
	_ fs.NodeLookuper  = (*node)(nil)
	_ fs.NodeMkdirer   = (*node)(nil)
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
)

func (n *node) real() string {
	return n.RootData.Path + "/" + n.Path(n.Root())
}

func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	flags &^= syscall.O_APPEND // the kernel gives the offset of each write
	if flags&syscall.O_TRUNC != 0 {
		if errno := n.truncate(0); errno != fs.OK {
			return nil, 0, errno
		}
		flags &^= syscall.O_TRUNC
	}
	if flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		flags = flags&^syscall.O_ACCMODE | syscall.O_RDWR
	}
	fd, err := syscall.Open(n.real(), int(flags), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &handle{fd: fd, synced: flags&syscall.O_DSYNC != 0}, fuse.FOPEN_DIRECT_IO, fs.OK
}

func (n *node) Create(
	ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut,
) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := n.real() + "/" + name
	flags &^= syscall.O_APPEND | syscall.O_TRUNC | syscall.O_ACCMODE
	fd, err := syscall.Open(path, int(flags)|os.O_CREATE|syscall.O_RDWR, mode)
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	inode, errno := n.child(ctx, path, out)
	if errno != fs.OK {
		syscall.Close(fd)
		return nil, nil, 0, errno
	}
	return inode, &handle{fd: fd, synced: flags&syscall.O_DSYNC != 0}, fuse.FOPEN_DIRECT_IO, fs.OK
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(ctx, n.real()+"/"+name, out)
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	path := n.real() + "/" + name
	if err := os.Mkdir(path, os.FileMode(mode)); err != nil {
		return nil, fs.ToErrno(err)
	}
	return n.child(ctx, path, out)
}

// child is the file or folder at a path. A new one can have the number of one that was removed, but not its time of birth.
func (n *node) child(ctx context.Context, path string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	var stat syscall.Stat_t
	if err := syscall.Lstat(path, &stat); err != nil {
		return nil, fs.ToErrno(err)
	}
	var extended unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &extended); err != nil {
		return nil, fs.ToErrno(err)
	}
	out.FromStat(&stat)
	born := uint64(extended.Btime.Sec)*1e9 + uint64(extended.Btime.Nsec)
	attributes := fs.StableAttr{Mode: stat.Mode, Ino: stat.Ino, Gen: born}
	return n.NewInode(ctx, &node{fs.LoopbackNode{RootData: n.RootData}}, attributes), fs.OK
}

func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if errno := n.truncate(int64(size)); errno != fs.OK {
			return errno
		}
		in.Valid &^= fuse.FATTR_SIZE
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

// Fsync of a folder has nothing to do.
func (n *node) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	if of, ok := f.(*handle); ok {
		return of.Fsync(ctx, flags)
	}
	return fs.OK
}

func (n *node) truncate(size int64) syscall.Errno {
	path := n.real()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fs.ToErrno(err)
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return fs.ToErrno(err)
	}
	if size > stat.Size() && full.Load() {
		return syscall.ENOSPC
	}
	mutex.Lock()
	defer mutex.Unlock()
	if errno := keep(int(file.Fd()), path, size, max(0, stat.Size()-size)); errno != fs.OK {
		return errno
	}
	return fs.ToErrno(file.Truncate(size))
}

// A handle is an open file, of which each write may be synced.
type handle struct {
	fd     int
	synced bool
}

var (
	_ fs.FileReader    = (*handle)(nil)
	_ fs.FileWriter    = (*handle)(nil)
	_ fs.FileFsyncer   = (*handle)(nil)
	_ fs.FileReleaser  = (*handle)(nil)
	_ fs.FileGetattrer = (*handle)(nil)
	_ fs.FileLseeker   = (*handle)(nil)
)

func (h *handle) Read(_ context.Context, buffer []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultFd(uintptr(h.fd), offset, len(buffer)), fs.OK
}

func (h *handle) Write(_ context.Context, data []byte, offset int64) (uint32, syscall.Errno) {
	wait()
	mutex.Lock()
	defer mutex.Unlock()
	var stat syscall.Stat_t
	if err := syscall.Fstat(h.fd, &stat); err != nil {
		return 0, fs.ToErrno(err)
	}
	if full.Load() && offset+int64(len(data)) > stat.Size {
		return 0, syscall.ENOSPC
	}
	if stat.Nlink > 0 { // power loss removes what has no name
		if errno := keep(h.fd, fmt.Sprintf("/proc/self/fd/%d", h.fd), offset, int64(len(data))); errno != fs.OK {
			return 0, errno
		}
	}
	written, err := syscall.Pwrite(h.fd, data, offset)
	if h.synced {
		synced(stat.Ino)
	}
	return uint32(max(0, written)), fs.ToErrno(err)
}

func (h *handle) Fsync(_ context.Context, _ uint32) syscall.Errno {
	wait()
	var stat syscall.Stat_t
	if err := syscall.Fstat(h.fd, &stat); err != nil {
		return fs.ToErrno(err)
	}
	mutex.Lock()
	defer mutex.Unlock()
	synced(stat.Ino) // the machine itself does not lose power
	return fs.OK
}

func (h *handle) Getattr(_ context.Context, out *fuse.AttrOut) syscall.Errno {
	var stat syscall.Stat_t
	if err := syscall.Fstat(h.fd, &stat); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&stat)
	return fs.OK
}

func (h *handle) Lseek(_ context.Context, offset uint64, whence uint32) (uint64, syscall.Errno) {
	at, err := syscall.Seek(h.fd, int64(offset), int(whence))
	return uint64(at), fs.ToErrno(err)
}

func (h *handle) Release(context.Context) syscall.Errno {
	return fs.ToErrno(syscall.Close(h.fd))
}

func obey(line string) (string, error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "forget":
		count, err := forget()
		return strconv.Itoa(count), err
	case "settle":
		settle()
		return "0", nil
	case "slow", "full":
		number, err := strconv.Atoi(rest)
		if word == "slow" {
			delay.Store(int64(number))
		} else {
			full.Store(number != 0)
		}
		return "0", err
	}
	return "", fmt.Errorf("no such command: %s", line)
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("disk FOLDER")
	}
	below, err := syscall.Open(os.Args[1], syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	root := &fs.LoopbackRoot{Path: fmt.Sprintf("/proc/self/fd/%d", below)}
	root.NewNode = func(data *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{fs.LoopbackNode{RootData: data}}
	}
	root.RootNode = root.NewNode(root, nil, "", nil)
	var stat syscall.Stat_t
	if err := syscall.Fstat(below, &stat); err != nil {
		log.Fatal(err)
	}
	root.Dev = stat.Dev
	never := time.Duration(0)
	server, err := fs.Mount(os.Args[1], root.RootNode, &fs.Options{
		EntryTimeout: &never,
		AttrTimeout:  &never,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "disk", Name: "bronze"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("mounted")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer, err := obey(lines.Text())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer)
	}
	server.Unmount()
}
