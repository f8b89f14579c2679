{{/*
What the operator may do in a namespace that it serves. Each verb is one that it uses: a test compares them with its code.
It holds no right to secrets: the kubelet reads those that a job names, in the job's own namespace.
*/}}
{{- define "finetune-operator.namespaceRules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [finetune.dev]
  resources: [finetuneexperiments]
  verbs: [list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status, finetuneexperiments/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# A server-side apply is a patch, which needs `create` where there is nothing yet.
- apiGroups: [""]
  resources: [services, persistentvolumeclaims]
  verbs: [list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch]
# Only events say why a Job cannot make its pods (quota, policy).
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* What it may do with what has no namespace. */}}
{{- define "finetune-operator.clusterRules" -}}
- apiGroups: [finetune.dev]
  resources: [finetuneruntimes]
  verbs: [list, watch]
# Their labels, by which a runtime may be for some of them only.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
  {{- with .Values.watchNamespaces }}
  resourceNames: {{ toJson . }}
  {{- end }}
{{- end }}
