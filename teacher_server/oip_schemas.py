"""JSON of the Open Inference Protocol v2: what a client sends, checked strictly, and what it gets.

The protocol's own names; https://github.com/kserve/open-inference-protocol, and Triton's binary tensor extension.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.schemas import INT64_MAX, Name, Row, StrictModel

VERSION = "1"
"""The only version of a model: other weights have another teacher id."""
EXTENSIONS = ("binary_tensor_data", "parameters")

Size = Annotated[int, Field(ge=0, le=INT64_MAX)]


class RequestParameters(StrictModel):
    """What a request says beside its tensors; what would be ignored is refused."""

    dataset: Name | None = Field(
        default=None, description="NAME/SPLIT that 'row' belongs to", examples=["digits/train"]
    )
    view: Row = Field(default=0, description="which deterministic rendering of the rows; 0 is the evaluation view")
    run: Name | None = Field(
        default=None, description="who pays for teacher calls; without one the first run of the key, else default"
    )
    timeout: Size = Field(default=0, description="microseconds until 504; 0 = as long as the server waits")
    binary_data_output: bool = Field(default=False, description="outputs as binary where they do not say themselves")


class InputParameters(StrictModel):
    """Of one input."""

    binary_data_size: Size | None = Field(default=None, description="bytes of this tensor behind the JSON")


class OutputParameters(StrictModel):
    """Of one requested output."""

    binary_data: bool | None = None


class InputTensor(StrictModel):
    """One input: ``image`` UINT8 [B, H, W, 3] or ``row`` INT64 [B]."""

    name: Name
    shape: list[Size] = Field(max_length=8)
    datatype: Name
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(default=None, description="row-major, flat or nested; left out where binary")


class RequestedOutput(StrictModel):
    """One output to return."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class InferRequest(StrictModel):
    """The JSON of ``POST /v2/models/M/infer``; without outputs, logits and features are returned."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [{"name": "row", "datatype": "INT64", "shape": [2], "data": [0, 7]}],
                    "parameters": {"dataset": "digits/train"},
                }
            ]
        }
    )

    id: str | None = Field(default=None, max_length=1024, description="comes back in the answer")
    parameters: RequestParameters = RequestParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=64)
    outputs: list[RequestedOutput] = Field(default=[], max_length=64)


class OutputTensor(BaseModel):
    """One output; without ``data``, ``parameters.binary_data_size`` bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = Field(default=None, description="row-major, flat")


class InferAnswer(BaseModel):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, int] = Field(description="teacher_calls: calls that this request caused")
    outputs: list[OutputTensor]


class TensorForm(BaseModel):
    """What a tensor looks like; -1 = any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The teacher, as a model of the protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorForm]
    outputs: list[TensorForm]


class ServerMetadata(BaseModel):
    """This server."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(BaseModel):
    """Whether a model can be asked now."""

    name: str
    ready: bool
