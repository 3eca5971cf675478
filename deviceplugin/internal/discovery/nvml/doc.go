// Package nvml learns of GPUs from libnvidia-ml, which is loaded when the source is opened and need not be there
// when the program starts. It is the only package that uses cgo: built without, Open is Unimplemented and the
// program falls back to /proc.
//
// Its calls may hang in the driver or crash: it runs in the probe process (package child), never in the one that
// serves the kubelet.
package nvml

// Config is where the library and the file systems are.
type Config struct {
	// Library is a path, or empty for what the loader finds.
	Library   string
	Proc, Sys string
}
