// Package test runs the real berth-csi, as a process, on real pools — a directory, an xfs, a btrfs, each in a loop
// file that the test makes — and speaks CSI to it as the kubelet does. Every test proves at its end that no mount, loop
// device, process or file is left.
package test
