package test

import "fmt"

// tenant is what this program does when it is started as a tenant of a volume.
func tenant(role string, _ []string) int {
	fmt.Println("unknown role", role)
	return 2
}
