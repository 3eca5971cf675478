package csisanity

import "testing"

func TestParse(t *testing.T) {
	r, err := parse([]byte(`[{"SpecReports":[
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"works","State":"passed"},
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"breaks","State":"failed"},
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"is not there","State":"skipped"},
		{"ContainerHierarchyTexts":["A"],"LeafNodeText":"should succeed when creating a snapshot with accessibility requirements","State":"failed"},
		{"ContainerHierarchyTexts":null,"LeafNodeText":"","State":"passed"}]}]`))
	if err != nil || r.Passed != 1 || r.Skipped != 1 || len(r.Failed) != 1 || r.Failed[0] != "A breaks" || len(r.Excused) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := parse([]byte(`[]`)); err == nil {
		t.Error("a run without a spec is a success")
	}
}
