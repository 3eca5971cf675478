package netd

import "slices"

func sorted(all []string) []string { slices.Sort(all); return all }
