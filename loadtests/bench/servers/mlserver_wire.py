"""A network as a custom runtime of MLServer, with its adaptive batching."""

from pathlib import Path

from bare_session import BareSession
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Network(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        parameters = self.settings.parameters
        self._session = BareSession(Path(parameters.uri), parameters.extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        y = self._session.run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
