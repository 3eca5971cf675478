package soak

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// The picture: one small chart for each measure, time to the right, upgrades as thin lines, the last two thirds in colour.
const (
	chartWidth  = 270
	chartHeight = 78
	chartsInRow = 3
	style       = `<style>
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#57606a}
.t{font-size:15px;font-weight:600}.v{font-size:10px}.l{fill:none;stroke:#12a594;stroke-width:1.5}.w{stroke:#8b949e}.u{stroke:#d4572a;stroke-opacity:.45}.g{fill:none;stroke:#8b949e;stroke-opacity:.35}
@media (prefers-color-scheme:dark){text{fill:#adbac7}}
</style>
`
)

// picture draws the samples.
func picture(samples []Sample, length time.Duration) []byte {
	names := measures()
	rows := (len(names) + chartsInRow - 1) / chartsInRow
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="soak">`+"\n", chartsInRow*chartWidth+20, 40+rows*chartHeight)
	b.WriteString(style)
	fmt.Fprintf(&b, `<text class="t" x="12" y="22">%v of pods coming and going</text><text class="v" x="340" y="22">red: an upgrade of daemon, supervisor and agent; the coloured part is judged; sizes in KiB</text>`+"\n", length)
	for i, name := range names {
		chart(&b, samples, length, name, point{12 + float64(i%chartsInRow*chartWidth), 40 + float64(i/chartsInRow*chartHeight)})
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

type point struct{ x, y float64 }

// chart draws one measure with its upper left corner at a point. The axis begins at zero, so that a leak is not made of noise.
func chart(b *strings.Builder, samples []Sample, length time.Duration, name string, at point) {
	const width, height = chartWidth - 20, chartHeight - 34
	high := 1.0
	for _, s := range samples {
		high = max(high, s.Values[name])
	}
	place := func(s Sample) point {
		return point{at.x + width*s.At.Seconds()/length.Seconds(), at.y + 18 + height*(1-s.Values[name]/high)}
	}
	fmt.Fprintf(b, `<text x="%.0f" y="%.0f">%s</text><text class="v" x="%.0f" y="%.0f" text-anchor="end">0 to %s</text>`, at.x, at.y+12, name, at.x+width, at.y+12, amount(high))
	fmt.Fprintf(b, `<rect class="g" x="%.0f" y="%.0f" width="%d" height="%d"/>`, at.x, at.y+18, width, height)
	var early, late strings.Builder
	life := int32(0)
	for _, s := range samples {
		p := place(s)
		if s.Life != life {
			life = s.Life
			fmt.Fprintf(b, `<line class="u" x1="%.1f" x2="%.1f" y1="%.0f" y2="%.0f"/>`, p.x, p.x, at.y+18, at.y+18+height)
		}
		line := &late
		if s.At < length/3 {
			line = &early
		}
		fmt.Fprintf(line, "%.1f,%.1f ", p.x, p.y)
	}
	fmt.Fprintf(b, `<polyline class="l w" points="%s"/><polyline class="l" points="%s"/>`+"\n", strings.TrimSpace(early.String()), strings.TrimSpace(late.String()))
}

// amount is a number as short as it is clear.
func amount(v float64) string {
	if v >= 10000 {
		return fmt.Sprintf("%.0f thousand", math.Round(v/1000))
	}
	return fmt.Sprintf("%.0f", v)
}
