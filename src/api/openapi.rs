//! The OpenAPI document of `/api/v1`.
//!
//! The schemas are derived from the types of `api`, and their descriptions from the comments
//! of these types. A field that every answer has is marked as `required`: otherwise utoipa takes
//! fields with a default, and fields that can be null, for optional ones.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, Parameter, PathItem, PathsBuilder};
use utoipa::openapi::schema::{ArrayBuilder, ComponentsBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::{
    Content, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    Response, ResponseBuilder, ResponsesBuilder, ServerBuilder,
};
use utoipa::{IntoParams, ToSchema};

use super::explain::{ExplainQuery, ExplainView};
use super::show_query::{DropQuery, FlowOrder, FlowQuery, ShowQuery};
use super::streams::{StreamQuery, StreamView};
use super::view::{
    DiscoveryView, DropView, FlowView, GroupView, InterfaceView, MnatView, PendingView, RouteView,
    TunnelView,
};

/// The path that serves the document.
pub const OPENAPI_PATH: &str = "/api/v1/openapi.json";

/// The name of the schema of error answers.
const ERROR: &str = "Error";

/// Returns the document as indented JSON with a final newline.
///
/// # Errors
/// A value of the document is not valid in JSON.
pub fn openapi_text() -> serde_json::Result<String> {
    Ok(document().to_pretty_json()? + "\n")
}

/// Returns all paths of `/api/v1`.
pub fn api_paths() -> Vec<String> {
    let shows = ShowQuery::all().map(|query| show_path(&query));
    let others = ["/api/v1/explain", OPENAPI_PATH].map(String::from);
    shows.into_iter().chain(others).collect()
}

fn show_path(query: &ShowQuery) -> String {
    format!("/api/v1/{}", query.name())
}

fn document() -> OpenApi {
    let mut schemas = Schemas(vec![(ERROR.into(), error_answer().into())]);
    let mut paths = PathsBuilder::new();
    for query in ShowQuery::all() {
        let operation = show_operation(&query, &mut schemas);
        paths = paths.path(show_path(&query), get(operation));
    }
    paths = paths
        .path("/api/v1/explain", get(explain_operation(&mut schemas)))
        .path(OPENAPI_PATH, get(openapi_operation()));
    let license = LicenseBuilder::new().name(env!("CARGO_PKG_LICENSE"));
    let info = InfoBuilder::new()
        .title("mcastor")
        .version(env!("CARGO_PKG_VERSION"))
        .license(Some(
            license.identifier(Some(env!("CARGO_PKG_LICENSE"))).build(),
        ))
        .description(Some(
            "The state of the multicast router, read-only. Later releases can add properties; \
             existing properties do not change within version 1 of the API. Every path answers \
             404 if the settings have `[http] api = false`, and 421 if the request names a host \
             that is not this machine.",
        ));
    let server = ServerBuilder::new()
        .url("http://127.0.0.1:9464")
        .description(Some("The default of `[http] listen`."));
    OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([server.build()]))
        .paths(paths)
        .components(Some(
            ComponentsBuilder::new()
                .schemas_from_iter(schemas.extensible())
                .build(),
        ))
        .build()
}

/// The schemas that the paths refer to, by name.
struct Schemas(Vec<(String, RefOr<Schema>)>);

impl Schemas {
    /// Adds the schema of `T` and those that it refers to. Returns a reference to it.
    fn add<T: ToSchema>(&mut self) -> Ref {
        self.0.push((T::name().into(), T::schema()));
        T::schemas(&mut self.0);
        Ref::from_schema_name(T::name())
    }

    /// Returns the schemas without the rule that there are no further properties. Requests have
    /// this rule, but the packet of a request is also part of an answer, and later releases can add
    /// properties there.
    fn extensible(self) -> impl Iterator<Item = (String, RefOr<Schema>)> {
        self.0.into_iter().map(|(name, mut schema)| {
            if let RefOr::T(Schema::Object(object)) = &mut schema {
                object.additional_properties = None;
            }
            (name, schema)
        })
    }
}

/// Returns an operation with the answers that every path can give.
fn operation(id: &str, summary: &str, answer: impl Into<RefOr<Schema>>) -> OperationBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String);
    let foreign_host = ResponseBuilder::new()
        .description("The request names a host that is not this machine.")
        .content("text/plain", content(text));
    let responses = ResponsesBuilder::new()
        .response("200", json_response("The answer.", answer))
        .response("404", error("The API is turned off in the settings."))
        .response("421", foreign_host)
        .response("500", error("The answer could not be encoded."))
        .response(
            "503",
            error("The router is busy or restarts a part of itself. Try again in a moment."),
        );
    OperationBuilder::new()
        .operation_id(Some(id))
        .summary(Some(summary))
        .responses(responses.build())
}

fn show_operation(query: &ShowQuery, schemas: &mut Schemas) -> OperationBuilder {
    let (summary, row) = match query {
        ShowQuery::Routes => (
            "Routes and the packets that they forward",
            schemas.add::<RouteView>(),
        ),
        ShowQuery::Interfaces => (
            "Interfaces and their counters",
            schemas.add::<InterfaceView>(),
        ),
        ShowQuery::Flows(_) => ("Flows that are being forwarded", schemas.add::<FlowView>()),
        ShowQuery::Groups => (
            "Groups joined as a host, and groups with members",
            schemas.add::<GroupView>(),
        ),
        ShowQuery::Pending => (
            "Routes, joins and proxies that wait for an interface",
            schemas.add::<PendingView>(),
        ),
        ShowQuery::Mnat => (
            "The role of this router in multicast NAT, and its mappings; empty without `[mnat]`",
            schemas.add::<MnatView>(),
        ),
        ShowQuery::Tunnels => (
            "The tunnels of AMT; empty without `[amt]`",
            schemas.add::<TunnelView>(),
        ),
        ShowQuery::Discovery => (
            "What devices offer between networks, who asks, and what is withheld; empty without \
             `[[discovery]]`",
            schemas.add::<DiscoveryView>(),
        ),
        ShowQuery::Drops(_) => (
            "The streams with the most dropped packets",
            schemas.add::<DropView>(),
        ),
        ShowQuery::Streams(_) => (
            "The health of monitored streams; empty without `monitor` in the settings",
            schemas.add::<StreamView>(),
        ),
    };
    let rows = ArrayBuilder::new().items(row);
    let show = ObjectBuilder::new()
        .property(query.name(), rows)
        .required(query.name());
    let operation = operation(query.name(), summary, answer("show", show));
    match query {
        ShowQuery::Flows(_) => {
            schemas.add::<FlowOrder>();
            with_parameters::<FlowQuery>(operation)
        }
        ShowQuery::Drops(_) => with_parameters::<DropQuery>(operation),
        ShowQuery::Streams(_) => with_parameters::<StreamQuery>(operation),
        _ => operation,
    }
}

fn explain_operation(schemas: &mut Schemas) -> OperationBuilder {
    let view = schemas.add::<ExplainView>();
    let summary = "What happens to a packet, and why";
    with_parameters::<ExplainQuery>(operation("explain", summary, answer("explain", view)))
}

fn openapi_operation() -> OperationBuilder {
    let document = ObjectBuilder::new().schema_type(Type::Object);
    operation("openapi", "This document", document)
}

/// Adds query parameters, and the answer to invalid ones.
fn with_parameters<Q: IntoParams>(operation: OperationBuilder) -> OperationBuilder {
    let parameters: Vec<Parameter> = Q::into_params(|| None);
    operation.parameters(Some(parameters)).response(
        "400",
        error("A parameter is missing, unknown or invalid. The error says which."),
    )
}

fn get(operation: OperationBuilder) -> PathItem {
    PathItem::new(HttpMethod::Get, operation)
}

fn error(description: &str) -> Response {
    json_response(description, Ref::from_schema_name(ERROR))
}

fn json_response(description: &str, schema: impl Into<RefOr<Schema>>) -> Response {
    ResponseBuilder::new()
        .description(description)
        .content("application/json", content(schema))
        .build()
}

fn content(schema: impl Into<RefOr<Schema>>) -> Content {
    ContentBuilder::new().schema(Some(schema)).build()
}

/// Returns the schema of an answer: the version, and the data under `name`.
fn answer(name: &str, data: impl Into<RefOr<Schema>>) -> ObjectBuilder {
    let version = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .enum_values(Some([super::VERSION]));
    ObjectBuilder::new()
        .property("version", version)
        .required("version")
        .property(name, data)
        .required(name)
}

fn error_answer() -> ObjectBuilder {
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("What is wrong, and what can be done."));
    answer("error", text).description(Some("The answer to a request that fails."))
}
