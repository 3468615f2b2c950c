{{- /*
Names and labels. The chart's are those of aad-pod-identity's chart: an upgrade of its release replaces its objects, and
selectors cannot be changed. With plainManifests they are those of its deploy/infra.
*/ -}}

{{- define "podidentity.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 59 | trimSuffix "-" }}
{{- end }}

{{- define "podidentity.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $full | trunc 59 | trimSuffix "-" }}
{{- end }}

{{- /* What the objects of a program are called, as YAML: "podidentity.names" (list $ "mic"). */ -}}
{{- define "podidentity.names" -}}
{{- $root := first . }}
{{- $program := last . }}
{{- if $root.Values.plainManifests -}}
workload: {{ $program }}
account: aad-pod-id-{{ $program }}-service-account
role: aad-pod-id-{{ $program }}-role
binding: aad-pod-id-{{ $program }}-binding
{{- else }}
{{- $name := printf "%s-%s" (include "podidentity.name" $root) $program -}}
workload: {{ $name }}
account: {{ $root.Values.rbac.enabled | ternary $name "" }}
role: {{ $name }}
binding: {{ $name }}
{{- end }}
{{- end }}

{{- /* Labels of the objects of a program, or of none: "podidentity.labels" (list $ "mic"). */ -}}
{{- define "podidentity.labels" -}}
{{- $root := first . }}
{{- $program := last . }}
{{- if $root.Values.plainManifests -}}
component: {{ $program }}
k8s-app: aad-pod-id
{{- else -}}
app.kubernetes.io/name: {{ include "podidentity.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with $program }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- if eq $program "nmi" }}
tier: node
{{- end }}
{{- end }}

{{- /* Labels by which a workload knows its pods: "podidentity.selector" (list $ "mic"). */ -}}
{{- define "podidentity.selector" -}}
{{- $root := first . }}
{{- $program := last . }}
{{- if not $root.Values.plainManifests -}}
app.kubernetes.io/name: {{ include "podidentity.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ $program }}
{{- else if eq $program "nmi" -}}
component: nmi
tier: node
{{- else -}}
component: mic
{{- if and $root.Values.rbac.enabled (not (include "podidentity.adminSecret" $root)) }}
app: mic
{{- end }}
{{- end }}
{{- end }}

{{- /* Labels of the pods: "podidentity.podLabels" (list $ "mic"). */ -}}
{{- define "podidentity.podLabels" -}}
{{- $root := first . }}
{{- $program := last . }}
{{- if not $root.Values.plainManifests }}
{{- include "podidentity.labels" . }}
{{- else if eq $program "nmi" -}}
component: nmi
tier: node
{{- else -}}
component: mic
app: mic
{{- end }}
{{- with (index $root.Values $program).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The Secret that MIC signs in with, or nothing: then it is azure.json. */ -}}
{{- define "podidentity.adminSecret" -}}
{{- if and .Values.adminsecret .Values.existingAdminSecret }}
{{- fail "adminsecret and existingAdminSecret are both set: choose one" }}
{{- end }}
{{- if .Values.adminsecret }}
{{- (include "podidentity.names" (list . "mic") | fromYaml).workload }}
{{- else }}
{{- .Values.existingAdminSecret | default "" }}
{{- end }}
{{- end }}

{{- /* Where values of adminsecret stand in the Secret, and in which variable MIC looks for them. */ -}}
{{- define "podidentity.adminSecretKeys" -}}
- {value: cloud, key: Cloud, variable: CLOUD}
- {value: tenantID, key: TenantID, variable: TENANT_ID}
- {value: clientID, key: ClientID, variable: CLIENT_ID}
- {value: clientSecret, key: ClientSecret, variable: CLIENT_SECRET}
- {value: useMSI, key: UseMSI, variable: USE_MSI}
- {value: userAssignedMSIClientID, key: UserAssignedMSIClientID, variable: USER_ASSIGNED_MSI_CLIENT_ID}
{{- end }}

{{- /* A program's image: "podidentity.image" (list $ "mic"). */ -}}
{{- define "podidentity.image" -}}
{{- $root := first . }}
{{- $program := last . }}
{{- $values := index $root.Values $program }}
{{- $repository := $root.Values.image.repository | trimSuffix "/" }}
{{- $tag := $values.tag | default $root.Chart.AppVersion | toString }}
{{- $image := printf "%s/%s:%s" $repository $values.image $tag | trimPrefix "/" }}
{{- if or (hasSuffix "oss/azure/aad-pod-identity" $repository) (regexMatch "^v1\\.[0-8]\\." $tag) }}
{{- printf "%s is an image of aad-pod-identity, and this chart is for its successor: set image.repository to the registry with the successor's images, and leave out %s.image and %s.tag" $image $program $program | fail }}
{{- end }}
{{- $image }}
{{- end }}
