// Package bgp runs the agent's BGP against BIRD 2 and FRR, in network namespaces that share a switch: each cell of the
// interoperability matrix is a test. It is tests alone; BIRD and FRR are run by hand, with all their files in the
// test's directory, never as the system's services.
package bgp
