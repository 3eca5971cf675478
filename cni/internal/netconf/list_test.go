package netconf_test

import "encoding/json"

// pluginsOf does what libcni does with a list: each plugin gets the list's name and version, and the runtime's
// data for the capabilities it declares.
func pluginsOf(list []byte) ([][]byte, error) {
	var l struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(list, &l); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, p := range l.Plugins {
		p["name"], p["cniVersion"] = l.Name, l.CNIVersion
		p["runtimeConfig"] = map[string]any{"portMappings": []any{map[string]any{"hostPort": 80, "containerPort": 80, "protocol": "TCP"}}}
		b, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}
