module bronze/local/faults

go 1.26.7

// Programs of the tests of faults. They have a module of their own, so that a change does not build the servers again.
require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/hanwen/go-fuse/v2 v2.12.1
)

require golang.org/x/sys v0.28.0
