# Custom resources are served like any other kind: defaults, pruning, checks, columns, status, scale, versions.
# runs: alone
kubectl apply -f - <<YAML
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.$ns.example.com}
spec:
  group: $ns.example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bt], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.oars, statusReplicasPath: .status.oars, labelSelectorPath: .status.selector}}
    additionalPrinterColumns: [{name: Oars, type: integer, jsonPath: .spec.oars}, {name: Age, type: date, jsonPath: .metadata.creationTimestamp}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [name]
            properties:
              name: {type: string, maxLength: 10, description: How it is called.}
              oars: {type: integer, default: 2, minimum: 1}
              crew: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [who], items: {type: object, required: [who], properties: {who: {type: string}, job: {type: string}}}}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status: {type: object, properties: {oars: {type: integer}, selector: {type: string}}}
YAML
kubectl wait crd "boats.$ns.example.com" --for=condition=Established --timeout=30s
eventually k get boats
boat() { printf 'apiVersion: %s.example.com/v1\nkind: Boat\nmetadata: {name: %s, namespace: %s}\nspec: %s\n' "$ns" "$1" "$ns" "$2"; }
boat one '{name: Anna, crew: [{who: a, job: x}, {who: b}], free: {any: [1, {thing: 2}]}}' | kubectl apply -f -
same "$(field boat one .spec.oars)" 2
same "$(field boat one .spec.free)" '{"any":[1,{"thing":2}]}'
same "$(columns "$(k get boats)")" 'NAME OARS AGE'
has "$(k get bt one)" one
has "$(k get all)" boat.
has "$(refused sh -c "printf '%s' '$(boat two '{name: TooLongAName, oars: 0, extra: 1}')' | kubectl create -f -")" 'unknown field "spec.extra"'
has "$(boat two '{name: TooLongAName, oars: 0}' | kubectl create -f - 2>&1 || true)" 'spec.name: Too long' 'spec.oars: Invalid value: 0'
has "$(boat two '{oars: "three"}' | kubectl create -f - 2>&1 || true)" 'spec.oars: Invalid value' 'spec.name: Required value'
boat two '{name: B, extra: 1}' | kubectl create --validate=false -f -
same "$(field boat two .spec)" '{"name":"B","oars":2}'
k scale boat two --replicas=5
same "$(field boat two .spec.oars)" 5
k patch boat two --subresource=status --type=merge -p '{"status":{"oars":4,"selector":"a=b"},"spec":{"oars":9}}'
same "$(field boat two .status.oars) $(field boat two .spec.oars)" '4 5'
boat three '{name: Otto, crew: [{who: a, job: x}]}' | kubectl apply --server-side -f -
boat three '{name: Otto, crew: [{who: b, job: z}]}' | kubectl apply --server-side --field-manager=other -f -
same "$(field boat three '.spec.crew[*].who')" 'a b'
has "$(kubectl explain boat.spec --api-version="$ns.example.com/v1")" 'How it is called.' oars
has "$(kubectl api-resources --api-group="$ns.example.com")" boats Boat bt
timeout 20 kubectl -n "$ns" get boats --watch-only --output-watch-events >"$work/boats.log" 2>&1 &
watcher=$!
sleep 1
k label boat one seen=yes
eventually grep -q MODIFIED "$work/boats.log"
kill $watcher || true
kubectl delete crd "boats.$ns.example.com" --wait --timeout=60s

# A definition changes the version that it is stored in; a migration writes what stands there anew.
stones() { # STORES-V1 STORES-V2
  kubectl apply -f - <<YAML
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: stones.$ns.example.com}
spec:
  group: $ns.example.com
  scope: Namespaced
  names: {plural: stones, kind: Stone}
  versions:
  - {name: v1, served: true, storage: $1, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v2, served: true, storage: $2, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
YAML
  kubectl wait crd "stones.$ns.example.com" --for=condition=Established --timeout=30s
}
stones true false
eventually k get stones
for name in a b c; do
  printf 'apiVersion: %s.example.com/v1\nkind: Stone\nmetadata: {name: %s}\n' "$ns" $name | k create -f -
done
stones false true
eventually sh -c '[ "$(kubectl get crd "$0" -o jsonpath="{.status.storedVersions}")" = "[\"v1\",\"v2\"]" ]' "stones.$ns.example.com"
before=$(k get stones -o jsonpath='{.items[*].metadata.resourceVersion}')
migration() { # NAME RESOURCE
  printf 'apiVersion: storagemigration.k8s.io/v1\nkind: StorageVersionMigration\nmetadata: {name: %s}\nspec: {resource: {group: %s.example.com, resource: %s}}\n' "$ns-$1" "$ns" "$2" | kubectl create -f -
}
migration stones stones
kubectl wait storageversionmigration "$ns-stones" --for=condition=Succeeded --timeout=60s
eventually sh -c '[ "$(kubectl get crd "$0" -o jsonpath="{.status.storedVersions}")" = "[\"v2\"]" ]' "stones.$ns.example.com"
after=$(k get stones -o jsonpath='{.items[*].metadata.resourceVersion}')
for old in $before; do lacks " $after " " $old "; done
has "$(kubectl get storageversionmigrations)" "$ns-stones" "stones.$ns.example.com" Succeeded
# Once more there is nothing to write.
migration again stones
kubectl wait storageversionmigration "$ns-again" --for=condition=Succeeded --timeout=60s
same "$(k get stones -o jsonpath='{.items[*].metadata.resourceVersion}')" "$after"
kubectl delete storageversionmigration "$ns-stones" "$ns-again"
kubectl delete crd "stones.$ns.example.com" --wait --timeout=60s
refused k get boats
has "$(kubectl create -f - 2>&1 <<YAML || true
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: wrong.example.com}
spec: {group: other.example.com, scope: Namespaced, names: {plural: wrong, kind: Wrong}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {a: {type: nothing}}}}}]}
YAML
)" 'metadata.name: Invalid value' 'Unsupported value: "nothing"'
