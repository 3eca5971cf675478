package report

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// The picture: panels of one unit each, every row with a bar for Berth above one for its peer, logarithmic, the
// ratio at the right, and a tick where the kernel's floor is. Colours are readable on light and dark grounds.
const (
	svgWidth   = 860
	svgLeft    = 190 // of the bars
	svgBars    = 530
	svgRow     = 34
	svgHead    = 46
	svgColours = `<style>
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#57606a}
.t{font-size:15px;font-weight:600}.v{font-size:11px}.r{font-weight:600;fill:#0a7d6c}.b{fill:#12a594}.p{fill:#8b949e}.f{stroke:#d4572a;stroke-width:2}.g{stroke:#8b949e;stroke-opacity:.25}
@media (prefers-color-scheme:dark){text{fill:#adbac7}.r{fill:#3dd6c3}}
</style>
`
)

// Panel is the rows of one unit.
type Panel struct {
	Title string
	Rows  []Line
}

// Line is one row of a panel; Floor names the row whose peer is the floor.
type Line struct {
	Label, Row, Floor string
	Scale             float64 // multiplies the row's figures
	Unit              string
}

// SVG draws the panels that the report has rows for.
func (r *Report) SVG(title, subtitle string, panels []Panel) []byte {
	var body strings.Builder
	y := svgHead + 32
	for _, p := range panels {
		y = r.panel(&body, p, y)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", svgWidth, y+8, html.EscapeString(title))
	b.WriteString(svgColours)
	fmt.Fprintf(&b, `<text class="t" x="12" y="24">%s</text><text class="v" x="12" y="42">%s</text>`+"\n", html.EscapeString(title), html.EscapeString(subtitle))
	fmt.Fprintf(&b, `<rect class="b" x="%d" y="14" width="11" height="11" rx="2"/><text x="%d" y="24">Berth</text>`, svgLeft+350, svgLeft+366)
	fmt.Fprintf(&b, `<rect class="p" x="%d" y="14" width="11" height="11" rx="2"/><text x="%d" y="24">containerd + runc</text>`, svgLeft+415, svgLeft+431)
	fmt.Fprintf(&b, `<line class="f" x1="%d" x2="%d" y1="13" y2="26"/><text x="%d" y="24">kernel</text>`+"\n", svgLeft+560, svgLeft+560, svgLeft+567)
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// panel draws one panel from y on and returns where the next one begins.
func (r *Report) panel(b *strings.Builder, p Panel, y int) int {
	low, high, n := r.span(p)
	if n == 0 {
		return y
	}
	x := func(v float64) float64 {
		return svgLeft + svgBars*(math.Log10(v)-math.Log10(low))/(math.Log10(high)-math.Log10(low))
	}
	fmt.Fprintf(b, `<text class="v" x="%d" y="%d">%s</text>`+"\n", svgLeft, y-6, html.EscapeString(p.Title))
	for v := low; v <= high*1.0001; v *= 10 {
		fmt.Fprintf(b, `<line class="g" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/><text class="v" x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(v), x(v), y+14, y+16+n*svgRow, x(v), y+10, short(v))
	}
	y += 18
	for _, l := range p.Rows {
		row, ok := r.Find(l.Row)
		if !ok {
			continue
		}
		berth, peer := row.Berth*l.Scale, row.Peer*l.Scale
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, svgLeft-8, y+19, html.EscapeString(l.Label))
		bar(b, "b", x(berth), y+3, short(berth)+" "+l.Unit)
		bar(b, "p", x(peer), y+16, short(peer)+" "+l.Unit)
		if f, ok := r.Find(l.Floor); ok && f.Peer*l.Scale > low {
			fmt.Fprintf(b, `<line class="f" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(f.Peer*l.Scale), x(f.Peer*l.Scale), y+2, y+15)
		}
		fmt.Fprintf(b, `<text class="r" x="%d" y="%d" text-anchor="end">%s</text>`+"\n", svgWidth-12, y+19, times(row.Ratio))
		y += svgRow
	}
	return y + 40
}

func bar(b *strings.Builder, class string, x float64, y int, label string) {
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="11" rx="2"/><text class="v" x="%.1f" y="%d">%s</text>`, class, svgLeft, y, max(1, x-svgLeft), max(x, svgLeft)+4, y+10, label)
}

// span is the power of ten below a panel's figures, the greatest of them, and how many rows it has.
func (r *Report) span(p Panel) (low, high float64, n int) {
	low, high = math.Inf(1), 0
	for _, l := range p.Rows {
		row, ok := r.Find(l.Row)
		if !ok {
			continue
		}
		n++
		low = min(low, row.Berth*l.Scale, row.Peer*l.Scale)
		high = max(high, row.Berth*l.Scale, row.Peer*l.Scale)
		if f, ok := r.Find(l.Floor); ok {
			low, high = min(low, f.Peer*l.Scale), max(high, f.Peer*l.Scale)
		}
	}
	return math.Pow(10, math.Floor(math.Log10(low*0.9))), high, n
}

// times says how many times better: a ratio below one is fewer, above one more.
func times(ratio float64) string {
	if ratio < 1 {
		ratio = 1 / ratio
	}
	if ratio >= 10 {
		return fmt.Sprintf("%.0f×", ratio)
	}
	return fmt.Sprintf("%.1f×", ratio)
}

func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	case v >= 1:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}

// WriteSVG draws the panels into a file.
func (r *Report) WriteSVG(path, title, subtitle string, panels []Panel) error {
	return writeFile(path, r.SVG(title, subtitle, panels))
}
