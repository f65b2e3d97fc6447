"""A request that the vendor answers with an error instead of a response."""

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """Carries everything an error needs on any transport; `status` is None where the vendor leaves it out."""

    def __init__(
        self,
        status: int | None,
        code: str | None,
        message: str,
        *,
        error_type: str = "invalid_request_error",
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: str | dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.error_type = error_type
        self.param = param
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})
        self.body = body

    def error(self) -> dict[str, Any]:
        """The inner error object of a WebSocket frame or an HTTP body."""
        fields = {"type": self.error_type, "code": self.code, "message": self.message, "param": self.param}
        return fields | self.extra

    def frame(self, lane: str | None, sequence: int | None = None) -> dict[str, Any]:
        """The `error` event of a WebSocket; a sequence number makes it a stream-level one."""
        if isinstance(self.body, dict):
            return self.body
        event: dict[str, Any] = {"type": "error"}
        if self.status is not None:
            event["status"] = self.status
        event["error"] = self.error() | ({"headers": self.headers} if self.headers else {})
        if sequence is not None:
            event["sequence_number"] = sequence
        if lane is not None:
            event["stream_id"] = lane
        return event


def unknown_parent(response_id: str) -> Refusal:
    return Refusal(
        400,
        "previous_response_not_found",
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
    )


def unknown_parent_in_words(response_id: str) -> Refusal:
    """The same from vendors that have no code for it."""
    message = f"Response with id={response_id} not found."
    return Refusal(404, None, message, body={"type": "error", "status": 404, "error": {"message": message}})


def unknown_parent_of_server(response_id: str) -> Refusal:
    """The same from servers that keep nothing, whose codes are numbers."""
    message = f"Response with id '{response_id}' not found."
    error = {"message": message, "type": "invalid_request_error", "param": "response_id", "code": 404}
    return Refusal(404, None, message, body={"error": error})


def unknown_deployment() -> Refusal:
    message = "The API deployment for this resource does not exist."
    return Refusal(404, "DeploymentNotFound", message, param="model")


def unknown_parameter(name: str) -> Refusal:
    return Refusal(400, "unknown_parameter", f"Unknown parameter: '{name}'.", param=name)


def expired_token() -> Refusal:
    return Refusal(401, "token_expired", "The access token has expired. Please refresh it and try again.")


def unknown_model(model: str) -> Refusal:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return Refusal(404, "model_not_found", message, param="model")


def unauthorized() -> Refusal:
    return Refusal(401, "invalid_api_key", "Incorrect API key provided.")


def too_old() -> Refusal:
    message = "Responses websocket connection limit reached. Create a new websocket connection to continue."
    return Refusal(400, "websocket_connection_limit_reached", message)
