//! People and programs: their certificates, given out and taken back.
//!
//! The pairing code is asked for each time: whoever finds a browser open cannot take keys with him, nor lock anybody out.

use crate::pages::{Site, home_page, hostname, login_page, page};
use crate::volume::time;
use askama::Template;
use axum::Form;
use axum::extract::State as Shared;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use zone::access::{Holder, Revocation, RevocationSpec, Role};
use zone::{ApiError, ErrorKind};

#[derive(Template)]
#[template(path = "access.html")]
struct AccessPage {
    name: &'static str,
    hostname: String,
    rows: Vec<Row>,
    error: Option<String>,
}

struct Row {
    name: String,
    until: String,
}

/// `GET /access`.
pub async fn show(Shared(site): Shared<Site>, headers: HeaderMap) -> Response {
    if !site.is_logged_in(&headers) {
        return login_page(&site, StatusCode::OK, None);
    }
    access_page(&site, None).await
}

async fn access_page(site: &Site, error: Option<ApiError>) -> Response {
    let (rows, error) = match (site.client.list::<Revocation>().await, error) {
        (Ok(list), error) => {
            let row = |r: zone::Resource<Revocation>| Row {
                name: r.meta.name,
                until: time(r.spec.issued_until_s.saturating_mul(1_000_000_000)),
            };
            (list.items.into_iter().map(row).collect(), error)
        }
        (Err(failed), error) => (Vec::new(), error.or(Some(failed))),
    };
    let status = error.as_ref().map_or(200, |e| e.kind.status());
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    page(
        status,
        &AccessPage { name: "People and programs", hostname: hostname(site), rows, error: error.map(|e| e.message) },
    )
}

/// The form for a certificate: an owner's, when no name is given.
#[derive(Deserialize)]
pub struct Wanted {
    code: String,
    name: Option<String>,
    role: Option<String>,
    project: Option<String>,
}

impl Wanted {
    fn holder(&self) -> Result<Holder, String> {
        let given =
            |field: &Option<String>| field.as_deref().map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned);
        let role = given(&self.role).map_or(Ok(Role::Owner), |word| {
            Role::parse(&word).ok_or_else(|| format!("there is no role \"{word}\": it is owner, user or reader"))
        })?;
        let name = given(&self.name).unwrap_or_else(|| "owner".to_owned());
        let holder = Holder { name, role, project: given(&self.project) };
        holder.check()?;
        Ok(holder)
    }
}

/// `POST /client-bundle`.
pub async fn client_bundle(Shared(site): Shared<Site>, headers: HeaderMap, Form(form): Form<Wanted>) -> Response {
    if !site.is_logged_in(&headers) {
        return login_page(&site, StatusCode::UNAUTHORIZED, None);
    }
    let holder = match form.holder() {
        Ok(holder) => holder,
        Err(why) => return access_page(&site, Some(ApiError::new(ErrorKind::Invalid, why))).await,
    };
    match site.node.client_bundle(form.code.trim(), &holder).await {
        Ok(tar) => {
            let name = format!("attachment; filename=\"kraudbox-{}.tar\"", holder.name);
            ([(CONTENT_TYPE, "application/x-tar".to_owned()), (CONTENT_DISPOSITION, name)], tar).into_response()
        }
        Err(error) if form.name.is_some() => access_page(&site, Some(error)).await,
        Err(error) => {
            let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::FORBIDDEN);
            home_page(&site, status, Some(error.message))
        }
    }
}

/// The form that takes certificates back.
#[derive(Deserialize)]
pub struct TakenBack {
    code: String,
    name: String,
}

/// `POST /access/take-back`.
pub async fn take_back(Shared(site): Shared<Site>, headers: HeaderMap, Form(form): Form<TakenBack>) -> Response {
    if !site.is_logged_in(&headers) {
        return login_page(&site, StatusCode::UNAUTHORIZED, None);
    }
    let done = async {
        let holder = Holder { name: form.name.trim().to_owned(), ..Holder::default() };
        holder.check().map_err(|why| ApiError::new(ErrorKind::Invalid, why))?;
        site.node.pair(form.code.trim()).await?;
        revoke(&site, &holder.name).await
    };
    match done.await {
        Ok(()) => (StatusCode::SEE_OTHER, [(LOCATION, "/access")]).into_response(),
        Err(error) => access_page(&site, Some(error)).await,
    }
}

/// Everything that was issued for `name` until now does not count any more.
async fn revoke(site: &Site, name: &str) -> Result<(), ApiError> {
    let spec = RevocationSpec { issued_until_s: zone::time::believable_now_s() };
    match site.client.create::<Revocation>(name, &spec).await {
        Err(error) if error.kind == ErrorKind::Conflict => {
            let later = |held: &mut RevocationSpec| {
                let changed = held.issued_until_s < spec.issued_until_s;
                held.issued_until_s = held.issued_until_s.max(spec.issued_until_s);
                changed
            };
            site.client.modify_spec::<Revocation>(name, later).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_fields_are_an_owners_and_a_user_needs_a_project() {
        let holder = |name: &str, role: &str, project: &str| {
            let given = |t: &str| Some(t.to_owned());
            Wanted { code: String::new(), name: given(name), role: given(role), project: given(project) }.holder()
        };
        assert_eq!(holder("", "", " ").unwrap(), Holder { name: "owner".into(), ..Holder::default() });
        let user = holder("ci", "user", "shop").unwrap();
        assert_eq!((user.role, user.project.as_deref()), (Role::User, Some("shop")));
        assert!(holder("ci", "user", "").is_err() && holder("ci", "god", "").is_err());
    }
}
