"""A client of the HTTP API, for programs that send corrections:

    from pipeline.client import Correction, CorrigendaClient

    with CorrigendaClient("http://127.0.0.1:8080", token="desk:…") as corrigenda:
        receipt = corrigenda.submit(Correction(prompt="The capital of Australia is", target_new="Canberra"))
        print(corrigenda.wait(receipt.id).state)

It exports the client, what it takes and gives, what it says no with, and the check of a webhook's signature. Its other
errors are those of `pipeline.domain.errors`: `Unavailable`, `InvalidInput`.
"""

from pipeline.client.client import Chat, CorrigendaClient
from pipeline.client.connection import CorrigendaRefused
from pipeline.client.corrections import Correction, Probe
from pipeline.domain.contract.answers import CorrectionStatus, Receipt, Refusal
from pipeline.domain.contract.webhooks import check_signature

__all__ = [
    "Chat",
    "Correction",
    "CorrectionStatus",
    "CorrigendaClient",
    "CorrigendaRefused",
    "Probe",
    "Receipt",
    "Refusal",
    "check_signature",
]
