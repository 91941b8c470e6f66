"""A client of the HTTP API, for programs that send corrections:

    from pipeline.client import Correction, CorrigendaClient

    with CorrigendaClient("http://127.0.0.1:8080", token="desk:…") as corrigenda:
        receipt = corrigenda.submit(Correction(prompt="The capital of Australia is", target_new="Canberra"))
        print(corrigenda.wait(receipt.id).state)

It exports the client, what it takes and gives, its error, and the check of a webhook's signature.
"""

from pipeline.client.client import Chat, CorrigendaClient, CorrigendaRefused
from pipeline.domain.contract.answers import CorrectionStatus, Receipt, Refusal
from pipeline.domain.contract.corrections import CorrectionV1 as Correction
from pipeline.domain.contract.webhooks import check_signature

__all__ = [
    "Chat",
    "Correction",
    "CorrectionStatus",
    "CorrigendaClient",
    "CorrigendaRefused",
    "Receipt",
    "Refusal",
    "check_signature",
]
