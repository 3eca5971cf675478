package mutants

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Cage(m.Run)) }

// tree is the lab of the sources that this test is part of.
func tree(t *testing.T) Lab {
	t.Helper()
	l, err := Lab{Root: "../..", Tools: os.Getenv("BERTH_TOOLS")}.Absolute()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTable: every mutant still fits the sources, and its test is there.
func TestTable(t *testing.T) {
	all := All()
	if len(all) < 40 {
		t.Errorf("%d mutants", len(all))
	}
	if err := tree(t).Check(all); err != nil {
		t.Error(err)
	}
	var b strings.Builder
	if err := Table(&b, all); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/design/mutants.md")
	if err != nil || !strings.Contains(string(page), b.String()) {
		t.Errorf("docs/design/mutants.md does not have the table that `mutants -list` prints (%v)", err)
	}
	for _, m := range all {
		if m.Why == "" || m.Package == "" {
			t.Errorf("%+v", m)
		}
	}
}

// TestSample kills five quick ones; `make mutants` kills all.
func TestSample(t *testing.T) {
	names := []string{"sealed file: checksum not compared", "lock file: a held lock is taken", "in-root open: RESOLVE_IN_ROOT dropped", "records: fsync removed", "addresses: block's checksum not compared"}
	sample := slices.DeleteFunc(All(), func(m Mutant) bool { return !slices.Contains(names, m.Name) })
	var b bytes.Buffer
	if err := tree(t).Hunt(t.Context(), sample, &b); err != nil || len(sample) != len(names) {
		t.Errorf("%v\n%s", err, &b)
	}
}

// TestJudge: a mutant is killed by the test that is named for it, and by nothing else that may go wrong.
func TestJudge(t *testing.T) {
	const run, pass = "=== RUN   TestA\n", "--- PASS: TestA (0.00s)\n"
	for out, want := range map[string]string{
		run + "--- FAIL: TestA (0.00s)\n":                                                "TestA",
		run + "--- FAIL: TestA (0.01s)\n    --- FAIL: TestA/case (0.00s)\n":              "TestA/case",
		run + "--- FAIL: TestA (0.00s)\npanic: x [recovered]\n":                          "TestA",
		run + "panic: test timed out after 1m40s\n\trunning tests:\n\t\tTestA (1m40s)\n": "TestA in panic: test timed out after 1m40s",
		run + "fatal error: all goroutines are asleep - deadlock!\n":                     "TestA in fatal error: all goroutines are asleep - deadlock!",
		run + pass + "left behind: a mount\nFAIL\n":                                      "",
		run + pass + "panic: at the end\n":                                               "",
		"panic: before the tests\n":                                                      "",
		run + "signal: killed\nFAIL\n":                                                   "",
		run + "--- FAIL: TestA (0.00s)\nsignal: killed\n":                                "",
		"=== RUN   TestAB\n--- FAIL: TestAB (0.00s)\n":                                   "",
		run + "--- SKIP: TestA (0.00s)\n=== RUN   TestB\npanic: x\n":                     "",
		run + pass + "=== RUN   TestA/case\n    --- FAIL: TestA/case (0.00s)\n":          "",
	} {
		names, err := judge("TestA", []byte(out))
		if want == "" && err == nil || want != "" && (err != nil || names[0] != want) {
			t.Errorf("%q is judged as %q, %v; want %q", out, names, err, want)
		}
	}
	if names, err := judge("TestA/a case", []byte("--- FAIL: TestA (0.0s)\n    --- FAIL: TestA/a_case (0.0s)\n")); err != nil || names[0] != "TestA/a_case" {
		t.Errorf("a case: %q, %v", names, err)
	}
}

// TestJudgement: the lab tells a mutant that is killed from one that lives, from one that does not compile, from one that
// does not fit, and from one whose test fails anyway.
func TestJudgement(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.com/m\n\ngo 1.26\n",
		"p/p.go": "package p\n\n// Sum adds.\nfunc Sum(a, b int) int { return a + b }\n\n// Two is unused by the test.\nfunc Two() int { return 2 }\n",
		"p/p_test.go": "package p\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tif Sum(1, 2) != 3 {\n\t\tt.Error()\n\t}\n}\n\n" +
			"func TestBroken(t *testing.T) { t.Error() }\n",
	} {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	l := Lab{Root: dir}
	m := Mutant{Name: "minus", File: "p/p.go", Old: "a + b", New: "a - b", Package: "p", Test: "TestSum"}
	if r, err := l.Kill(t.Context(), m); err != nil || !slices.Equal(r.Failed, []string{"TestSum"}) {
		t.Errorf("killed: %+v %v", r, err)
	}
	alive := m
	alive.Name, alive.Old, alive.New = "three", "return 2", "return 3"
	var b bytes.Buffer
	if err := l.Hunt(t.Context(), []Mutant{m, alive}, &b); !errors.Is(err, ErrSurvived) || !strings.Contains(b.String(), "1 of 2 mutants killed") {
		t.Errorf("%v\n%s", err, &b)
	}
	for name, change := range map[string]func(*Mutant){
		"it does not compile":    func(m *Mutant) { m.New = "a +" },
		"the text is not there":  func(m *Mutant) { m.Old = "a * b" },
		"the text is there more": func(m *Mutant) { m.Old = "return" },
		"it changes nothing":     func(m *Mutant) { m.New = m.Old },
	} {
		bad := m
		change(&bad)
		if r, err := l.Kill(t.Context(), bad); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for name, test := range map[string]string{"there is no such test": "TestNone", "it fails anyway": "TestBroken", "there is no such case": "TestSum/case"} {
		bad := m
		bad.Test = test
		if err := l.Hunt(t.Context(), []Mutant{bad}, &b); err == nil || errors.Is(err, ErrSurvived) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := m
	bad.Test = "TestNone"
	if err := l.Check([]Mutant{m, m, bad}); err == nil || !strings.Contains(err.Error(), "twice") || !strings.Contains(err.Error(), "has no TestNone") {
		t.Error(err)
	}
}
