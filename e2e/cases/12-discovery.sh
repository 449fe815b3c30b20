# What the cluster says about itself.
has "$(kubectl version)" 'Server Version: v1.37'
has "$(kubectl cluster-info)" 'is running at'
has "$(kubectl api-versions)" apps/v1 batch/v1 rbac.authorization.k8s.io/v1
resources=$(kubectl api-resources)
for kind in bindings configmaps endpoints events limitranges namespaces nodes pods podtemplates replicationcontrollers \
  resourcequotas secrets serviceaccounts services deployments daemonsets replicasets statefulsets controllerrevisions \
  jobs cronjobs endpointslices leases poddisruptionbudgets roles rolebindings clusterroles clusterrolebindings \
  priorityclasses runtimeclasses certificatesigningrequests customresourcedefinitions tokenreviews \
  subjectaccessreviews selfsubjectreviews ingresses networkpolicies storageclasses horizontalpodautoscalers; do
  has "$resources" "$kind"
done
has "$(kubectl api-resources --namespaced=false -o name)" nodes
has "$(kubectl api-resources --api-group=apps -o wide)" 'create,delete,deletecollection,get,list,patch,update,watch'
has "$(kubectl explain pod.spec.containers.image)" 'FIELD: image' 'DESCRIPTION'
has "$(kubectl explain deployment --recursive)" 'rollingUpdate' 'maxSurge' 'tolerationSeconds'
has "$(kubectl explain cronjob.spec.concurrencyPolicy)" 'Forbid'
has "$(refused kubectl explain pod.spec.nothing)" 'does not exist'
has "$(kubectl get --raw /readyz)" ok
has "$(kubectl get --raw /livez)" ok
has "$(kubectl get --raw /version)" '"gitVersion":"v1.37'
has "$(kubectl get --raw /openapi/v3)" apis/apps/v1
