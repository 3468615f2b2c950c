{{- /* A value as text: YAML knows no whole numbers above six digits but in scientific notation. */ -}}
{{- define "podidentity.text" -}}
{{- if kindIs "invalid" . }}
{{- else if kindIs "float64" . }}
{{- eq . (floor .) | ternary (printf "%.0f" .) (toString .) }}
{{- else }}
{{- toString . }}
{{- end }}
{{- end }}

{{- /*
Command line from a list of (flag, value, what is left out besides the empty value): a flag that says what the program does
anyway is not passed.
*/ -}}
{{- define "podidentity.flags" -}}
{{- range . }}
{{- $text := include "podidentity.text" (index . 1) }}
{{- if and $text (ne $text (index . 2)) }}
- {{ printf "--%s=%s" (first .) $text | quote }}
{{- end }}
{{- end }}
{{- end }}
