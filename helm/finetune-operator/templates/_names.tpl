{{/* The release's name for everything in its namespace. */}}
{{- define "finetune-operator.name" -}}
{{- $chart := .Chart.Name -}}
{{- if contains $chart .Release.Name -}}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $chart | trunc 63 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{/* Name of what has no namespace: it names the release's, for two releases of one name. */}}
{{- define "finetune-operator.clusterName" -}}
{{ printf "%s:%s" .Release.Namespace (include "finetune-operator.name" .) }}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ .Values.serviceAccount.name | default (include "finetune-operator.name" .) }}
{{- else -}}{{ .Values.serviceAccount.name | default "default" }}{{- end -}}
{{- end }}

{{/* What tells the operator's pods from others; it may never change, for a Deployment's selector cannot. */}}
{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "finetune-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* repository:tag or repository@digest of an image of this release. Takes (dict "image" … "context" .). */}}
{{- define "finetune-operator.image" -}}
{{- if .image.digest -}}{{ .image.repository }}@{{ .image.digest }}
{{- else -}}{{ .image.repository }}:{{ .image.tag | default .context.Chart.AppVersion }}{{- end -}}
{{- end }}
