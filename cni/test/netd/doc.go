// Package netd runs the built berth-netd and berth-cni on nodes that are network namespaces, joined by switches and a
// router that are namespaces too, and looks at what pods reach. Nothing is put into the machine's own namespaces.
package netd
