"""tmp"""
from tests.cluster.programs import answer_of, binding, identity, pod


def test_x(azure, cluster, kubelet, programs):
    demo = azure.add_identity("demo")
    mic = programs.start_mic()
    nmi = programs.start_nmi()
    nmi.wait_for_line("listening on")
    cluster.apply(identity("demo-aad1", demo, azure.client_id(demo)), binding("demo-b", "demo-aad1", "demo"))
    web = kubelet.run(pod("web", selector="demo"))
    answer = programs.ask_token(web)
    print(answer)
    op = azure.sandbox.azure.operations[0]
    print(op.reported_at, answer["answered_at_s"] - op.reported_at, answer["answered_at_s"]-answer["asked_at_s"])
    print(cluster.list("AzureAssignedIdentity"))
    print([ (e["reason"], e["message"], e["involvedObject"]["name"]) for e in cluster.list("Event")])
    assert answer["claims"]["xms_mirid"] == demo
    assert 0
