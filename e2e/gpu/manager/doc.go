// Package manager tests berth-gpu against the kubelet's own code: its device manager (pkg/kubelet/cm/devicemanager)
// and its plugin manager, which watches plugins_registry. It is a module of its own because it links the kubelet.
//
// Every test runs in a mount namespace in which /var/lib/kubelet is a tmpfs: the device manager's path is fixed.
package manager
