// Package nearest finds the known word that is nearest to an unknown one, for messages that name a way out. It
// imports nothing.
package nearest

// Word is the one of known with the smallest edit distance to word, the first among equals; "" if there is none.
func Word(word string, known []string) string {
	best, dist := "", -1
	for _, k := range known {
		if d := distance(word, k); dist < 0 || d < dist {
			best, dist = k, d
		}
	}
	return best
}

// distance is Levenshtein's, of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
