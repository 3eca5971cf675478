package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Limits in lines. A test's function may hold a long table.
const (
	fileLimit     = 400
	funcLimit     = 60
	testFuncLimit = 120
)

// trees are all Go code of the repository.
func trees() []string {
	return []string{"cri", "shim", "cni", "csi", "deviceplugin", "proto", "internal", "e2e"}
}

// banned are names that say nothing about what is inside.
func banned() []string {
	return []string{"util", "utils", "common", "helper", "helpers", "misc", "types", "base", "lib"}
}

func TestShape(t *testing.T) {
	documented := map[string]bool{} // directories with a package comment
	fset := token.NewFileSet()
	for _, file := range sources(t, trees()...) {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(b, []byte("\n")); n > fileLimit {
			t.Errorf("%s has %d lines, at most %d", file, n, fileLimit)
		}
		f, err := parser.ParseFile(fset, file, b, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(banned(), f.Name.Name) {
			t.Errorf("%s: a package is a noun, %q is none", file, f.Name.Name)
		}
		dir := filepath.Dir(file)
		documented[dir] = documented[dir] || f.Doc != nil
		test := strings.HasSuffix(file, "_test.go")
		for _, d := range f.Decls {
			checkLength(t, fset, d, test)
			if !test {
				checkDocumented(t, fset, d)
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func checkLength(t *testing.T, fset *token.FileSet, d ast.Decl, test bool) {
	t.Helper()
	fn, ok := d.(*ast.FuncDecl)
	if !ok {
		return
	}
	limit := funcLimit
	if test {
		limit = testFuncLimit
	}
	if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > limit {
		t.Errorf("%s: %s has %d lines, at most %d", fset.Position(fn.Pos()), fn.Name.Name, n, limit)
	}
	if fn.Name.Name == "init" {
		t.Errorf("%s: func init: build it in main", fset.Position(fn.Pos()))
	}
}

func checkDocumented(t *testing.T, fset *token.FileSet, d ast.Decl) {
	t.Helper()
	missing := func(n *ast.Ident) {
		if n.IsExported() {
			t.Errorf("%s: %s is not documented", fset.Position(n.Pos()), n.Name)
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && receiverExported(d) {
			missing(d.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if d.Doc == nil && s.Doc == nil && s.Comment == nil {
					missing(s.Name)
				}
			case *ast.ValueSpec:
				if d.Doc == nil && s.Doc == nil && s.Comment == nil {
					for _, n := range s.Names {
						missing(n)
					}
				}
			}
		}
	}
}

// receiverExported is true for functions and for methods of types that another package can name.
func receiverExported(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	x := d.Recv.List[0].Type
	for {
		switch r := x.(type) {
		case *ast.StarExpr:
			x = r.X
		case *ast.IndexExpr:
			x = r.X
		case *ast.IndexListExpr:
			x = r.X
		case *ast.Ident:
			return r.IsExported()
		default:
			return false
		}
	}
}
