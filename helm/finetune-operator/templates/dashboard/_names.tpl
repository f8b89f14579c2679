{{- define "finetune-operator.dashboardName" -}}
{{ include "finetune-operator.name" . | trunc 53 | trimSuffix "-" }}-dashboard
{{- end }}

{{/* What tells its pods from the operator's; as there, it may never change. */}}
{{- define "finetune-operator.dashboardSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: dashboard
{{- end }}

{{- define "finetune-operator.dashboardLabels" -}}
{{ include "finetune-operator.labels" . }}
app.kubernetes.io/component: dashboard
{{- end }}

{{/* All that it may do. */}}
{{- define "finetune-operator.dashboardRules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs, finetuneexperiments]
  verbs: [list, watch]
{{- end }}
