//! The client of an OpenAI-compatible server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::cache::Cache;
use crate::clock::{Clock, SystemClock};
use crate::counts::{Counts, Price};
use crate::error::{ClientError, Result, Trouble, excerpt};
use crate::http::{Http, HttpOptions};
use crate::limit::RateLimit;
use crate::request::Request;
use crate::response::{self, Completion};
use crate::retry::RetryPolicy;

/// How a server is spoken to.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// With the version, as `http://127.0.0.1:8000/v1`.
    pub base_url: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Time limits and proxy.
    pub http: HttpOptions,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Attempts per minute, over all threads.
    pub requests_per_minute: Option<f64>,
    /// Where answers are kept between runs; `None` keeps none.
    pub cache_dir: Option<PathBuf>,
    /// By model.
    pub prices: BTreeMap<String, Price>,
}

impl ClientOptions {
    /// Defaults for the server at this address.
    pub fn new(base_url: impl Into<String>) -> ClientOptions {
        ClientOptions {
            base_url: base_url.into(),
            api_key: None,
            http: HttpOptions::default(),
            retry: RetryPolicy::default(),
            requests_per_minute: None,
            cache_dir: None,
            prices: BTreeMap::new(),
        }
    }
}

/// A client; may be used by many threads at once.
pub struct Client {
    base_url: String,
    api_key: Option<String>,
    retry: RetryPolicy,
    prices: BTreeMap<String, Price>,
    http: Http,
    limit: Option<RateLimit>,
    cache: Option<Cache>,
    counts: Mutex<Counts>,
    clock: Arc<dyn Clock>,
}

impl Client {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// [`ClientError::Option`].
    pub fn new(options: ClientOptions) -> Result<Client> {
        Client::with_clock(options, Arc::new(SystemClock::default()))
    }

    /// As [`Client::new`], with another clock.
    ///
    /// # Errors
    /// [`ClientError::Option`].
    pub fn with_clock(options: ClientOptions, clock: Arc<dyn Clock>) -> Result<Client> {
        options.retry.check()?;
        let base_url = options.base_url.trim_end_matches('/').to_owned();
        let bad =
            |name, value: &str, expected| ClientError::Option { name, value: value.to_owned(), expected };
        if !base_url.starts_with("http://") && !base_url.starts_with("https://") {
            return Err(bad("base_url", &base_url, "an address as http://127.0.0.1:8000/v1"));
        }
        let rate = options.requests_per_minute;
        if let Some(rate) = rate.filter(|rate| !(rate.is_finite() && *rate > 0.0)) {
            return Err(bad("requests_per_minute", &rate.to_string(), "a number above 0"));
        }
        Ok(Client {
            base_url,
            api_key: options.api_key,
            retry: options.retry,
            prices: options.prices,
            http: Http::new(&options.http)?,
            limit: rate.map(RateLimit::per_minute),
            cache: options.cache_dir.map(Cache::new),
            counts: Mutex::new(Counts::default()),
            clock,
        })
    }

    /// One request: from the cache, or from the server with as many attempts as the policy allows.
    ///
    /// # Errors
    /// [`ClientError::Request`] with what came last; [`ClientError::Io`] if the cache cannot be used.
    pub fn complete(&self, request: &Request) -> Result<Completion> {
        let outcome = self.complete_uncounted(request);
        self.count(|counts| {
            counts.n_requests += 1;
            counts.n_failures += u64::from(outcome.is_err());
        });
        outcome
    }

    /// Many requests, at most `max_parallel` at a time. Results are in order; one failure does not end the others.
    pub fn complete_all(&self, requests: &[Request], max_parallel: usize) -> Vec<Result<Completion>> {
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Completion>>>> =
            requests.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < requests.len())
            {
                let outcome = self.complete(&requests[at]);
                *results[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..max_parallel.clamp(1, requests.len().max(1)) {
                scope.spawn(work);
            }
        });
        let take = |slot: Mutex<Option<_>>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.into_iter().map(|slot| take(slot).expect("every request was worked on")).collect()
    }

    /// The names of the server's models.
    ///
    /// # Errors
    /// [`ClientError::Request`].
    pub fn models(&self) -> Result<Vec<String>> {
        let url = format!("{}/models", self.base_url);
        self.exchange(&url, 0, &mut || {
            let json = self.http.get(&url, self.api_key.as_deref())?.json(&*self.clock)?;
            models_of(&json)
        })
    }

    /// Sends JSON to any address, with the attempts of the policy; what is answered with success is not looked at.
    ///
    /// # Errors
    /// [`ClientError::Request`].
    pub fn post(&self, url: &str, body: &Value) -> Result<()> {
        let bytes = serde_json::to_vec(body).expect("JSON with names that are text can be written");
        self.exchange(url, 0, &mut || {
            let answer = self.http.post(url, self.api_key.as_deref(), &bytes)?;
            match answer.status {
                200..300 => Ok(()),
                _ => Err(answer.status_trouble(&*self.clock)),
            }
        })
    }

    /// What was asked so far, and what it cost.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete_uncounted(&self, request: &Request) -> Result<Completion> {
        if request.n == 0 {
            return Err(ClientError::Option { name: "n", value: "0".to_owned(), expected: "at least 1" });
        }
        let url = format!("{}/{}", self.base_url, request.path());
        let body = request.body();
        let key = Cache::key(&url, &body);
        // What was asked for may have been set through `extra`.
        let n =
            body.get("n").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(request.n);
        if let Some(completion) = self.cached(&key, n)? {
            return Ok(completion);
        }
        let (json, completion) = self.ask(&url, &key, &body, n)?;
        if let Some(cache) = &self.cache {
            cache.put(&key, &body, &json)?;
        }
        let price = self.prices.get(&request.model).copied().unwrap_or_default();
        self.count(|counts| match &completion.usage {
            Some(usage) => {
                counts.prompt_tokens += usage.prompt_tokens;
                counts.completion_tokens += usage.completion_tokens;
                counts.cost += price.of(usage);
            }
            None => counts.n_without_usage += 1,
        });
        Ok(completion)
    }

    fn cached(&self, key: &str, n: u32) -> Result<Option<Completion>> {
        let Some(json) = self.cache.as_ref().map(|cache| cache.get(key)).transpose()?.flatten() else {
            return Ok(None);
        };
        // What an older version kept and this one does not understand is asked for again.
        let Ok(completion) = response::parse(&json, n) else { return Ok(None) };
        self.count(|counts| counts.n_cache_hits += 1);
        Ok(Some(Completion { from_cache: true, ..completion }))
    }

    fn ask(&self, url: &str, key: &str, body: &Map<String, Value>, n: u32) -> Result<(Value, Completion)> {
        let bytes = serde_json::to_vec(body).expect("JSON with names that are text can be written");
        let request = u64::from_str_radix(&key[..16], 16).expect("a hash is hexadecimal");
        self.exchange(url, request, &mut || {
            let json = self.http.post(url, self.api_key.as_deref(), &bytes)?.json(&*self.clock)?;
            let completion = response::parse(&json, n)?;
            Ok((json, completion))
        })
    }

    fn exchange<T>(
        &self,
        url: &str,
        request: u64,
        attempt: &mut dyn FnMut() -> std::result::Result<T, Trouble>,
    ) -> Result<T> {
        let mut on_retry = |_: &Trouble| self.count(|counts| counts.n_retries += 1);
        self.retry.run(&*self.clock, url, request, &mut on_retry, &mut || {
            if let Some(limit) = &self.limit {
                limit.wait(&*self.clock);
            }
            self.count(|counts| counts.n_calls += 1);
            attempt()
        })
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn models_of(json: &Value) -> std::result::Result<Vec<String>, Trouble> {
    let names = json.get("data").and_then(Value::as_array).and_then(|data| {
        data.iter().map(|model| model.get("id")?.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    names.ok_or_else(|| Trouble::Shape {
        reason: "is no list of models (`data`, each with an `id`)".to_owned(),
        excerpt: excerpt(json.to_string().as_bytes()),
    })
}
