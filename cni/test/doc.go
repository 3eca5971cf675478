// Package test runs the built berth-cni as a container runtime would, on the real kernel, on nodes that are network
// namespaces of their own: a node, a client outside of it joined by a veth pair, and pods. Nothing is put into the
// machine's own namespaces. Every test ends with a census: links, addresses, routes, nftables elements and files
// must be what they were.
package test
