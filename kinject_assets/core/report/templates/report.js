// The report's explorer, its challenges and its cost calculator.
//
// No framework, no request, no markup from data: every text of the study is put into the page with
// textContent. The data lie in the page, packed by core/report/explorer.py.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const PAGE = 50; // questions a page of the list
  const LETTERS = "ABCDEFGH";
  const RIGHT = 1, WRONG = 0, NONE = -1;

  /** Makes an element; children are elements or texts, never markup. */
  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  /** Storage that may be switched off: the page works without it. */
  const storage = {
    get(key) { try { return window.localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { window.localStorage.setItem(key, value); } catch { /* not kept */ } },
  };

  // -- Light and dark ----------------------------------------------------------------------------

  function setUpTheme() {
    const root = document.documentElement, button = $("theme");
    const dark = () => root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
    const kept = storage.get("kinject-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      storage.set("kinject-theme", root.dataset.theme);
      show();
    });
    show();
  }

  /** What is folded in is opened for print, and folded again. */
  function setUpPrint() {
    let opened = [];
    window.addEventListener("beforeprint", () => {
      opened = [...document.querySelectorAll("details:not([open])")];
      for (const one of opened) one.open = true;
    });
    window.addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
  }

  // -- Costs -------------------------------------------------------------------------------------

  /** USD a month of one method; null where a time was not measured or a price is unknown. */
  function monthly(cost, questions, updates, price) {
    if (!cost || cost.question_seconds === null) return null;
    if (cost.update_usd === null && updates) return null;
    const seconds = updates * cost.update_seconds + questions * cost.question_seconds;
    return updates * cost.update_usd + seconds / 3600 * price;
  }

  /** The same words as Operation.break_even in core/report/costs.py. */
  function breakEven(costs, updates, price) {
    const { rag, ft } = costs;
    if (!rag || !ft) return "needs RAG and FT";
    if (rag.question_seconds === null || ft.question_seconds === null) {
      return "no answer's time was measured";
    }
    const ofFt = monthly(ft, 0, updates, price), ofRag = monthly(rag, 0, updates, price);
    if (ofFt === null || ofRag === null) return "no price";
    const more = ofFt - ofRag;
    const slope = (rag.question_seconds - ft.question_seconds) / 3600 * price;
    if (more * slope <= 0) {
      const dear = more || -slope;
      return dear ? `${dear > 0 ? "RAG" : "FT"} at any volume` : "equal";
    }
    const at = Math.round(more / slope).toLocaleString("en");
    return `${slope > 0 ? "FT" : "RAG"} above ${at} questions`;
  }

  function usd(value) {
    if (value === null) return "-";
    if (value > 0 && value < 0.01) return "< 0.01";
    return value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  }

  function setUpCosts() {
    const form = $("operation");
    if (!form) return;
    const number = (name) => Math.max(0, Number(form.elements[name].value) || 0);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      const questions = number("questions"), updates = number("updates"), price = number("price");
      for (const row of document.querySelectorAll("tr[data-costs]")) {
        const costs = JSON.parse(row.dataset.costs);
        for (const method of ["rag", "ft", "ft_rag"]) {
          const cell = row.querySelector(`[data-method=${method}]`);
          cell.textContent = usd(monthly(costs[method], questions, updates, price));
        }
        row.querySelector("[data-break-even]").textContent = breakEven(costs, updates, price);
      }
    });
    form.hidden = false;
  }

  // -- The data ----------------------------------------------------------------------------------

  async function unpack() {
    const packed = $("data").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  /** Columns made ready: numbers for what is asked often, texts as they are. */
  class Study {
    constructor(data) {
      this.data = data;
      this.n = data.questions.id.length;
      this.corpus = Int32Array.from(data.questions.corpus);
      this.start = data.corpora.map((_, c) => this.corpus.indexOf(c)); // corpora are in one piece
      this.gold = Int8Array.from(data.questions.gold);
      this.options = Int8Array.from(data.questions.options, (options) => options.length);
      // Where the options of each question begin among those of its corpus.
      this.offset = new Int32Array(this.n);
      for (let q = 1; q < this.n; q++) {
        const fresh = this.corpus[q] !== this.corpus[q - 1];
        this.offset[q] = fresh ? 0 : this.offset[q - 1] + this.options[q - 1];
      }
      for (const condition of data.conditions) {
        condition.answerIds = null; // split when they are first asked for
      }
      this.several = new Set(data.conditions.map((c) => c.shots)).size > 1;
      this.outcomes = data.systems.map((system) => this.outcomesOf(system));
      this.passage = this.passageRanks();
      this.haystack = null;
    }

    /** Condition that stands for a system on one question; -1 for none. */
    standing(system, q) {
      const stands = system.standing;
      return (stands.length === 1 ? stands[0] : stands[this.data.questions.fold[q]]) ?? -1;
    }

    /** Place of the chosen option; -1 where there is no answer. */
    choice(condition, q) {
      const at = condition.choices.charCodeAt(q - this.start[condition.corpus]) - 48;
      return at >= 0 && at < 10 ? at : -1;
    }

    outcomesOf(system) {
      const found = new Int8Array(this.n).fill(NONE);
      const from = this.start[system.corpus];
      if (from < 0) return found;
      for (let q = from; q < this.n && this.corpus[q] === system.corpus; q++) {
        const at = this.standing(system, q);
        if (at < 0) continue;
        const choice = this.choice(this.data.conditions[at], q);
        if (choice >= 0) found[q] = choice === this.gold[q] ? RIGHT : WRONG;
      }
      return found;
    }

    /** Log-likelihoods in nats of the options; null where they were left out. */
    logliks(condition, q) {
      if (!condition.logliks) return null;
      const from = this.offset[q];
      const found = condition.logliks.slice(from, from + this.options[q]);
      return found.some((x) => x === null) ? null : found.map((x) => x / 100);
    }

    /** Nats by which the right option is ahead of the best other one. */
    margin(system, q) {
      const at = this.standing(system, q);
      const found = at < 0 ? null : this.logliks(this.data.conditions[at], q);
      if (!found) return null;
      const others = found.filter((_, i) => i !== this.gold[q]);
      return found[this.gold[q]] - Math.max(...others);
    }

    answerId(condition, q) {
      condition.answerIds ??= condition.answers.split(",");
      return condition.answerIds[q - this.start[condition.corpus]] || "";
    }

    /** Rank of the question's own passage with the study's retriever; 0: missed, -1: none. */
    passageRanks() {
      const ranks = new Int32Array(this.n).fill(-1);
      const first = new Map(); // corpus -> the retriever of its tables
      for (const c of this.data.conditions) {
        if (c.retriever && (c.main || !first.has(c.corpus))) first.set(c.corpus, c.retriever);
      }
      for (let q = 0; q < this.n; q++) {
        const own = this.data.questions.chunk[q];
        const retrieved = this.data.retrieved[first.get(this.corpus[q])];
        const chunks = retrieved ? retrieved.chunks[q] : [];
        if (own >= 0 && chunks.length) ranks[q] = chunks.indexOf(own) + 1;
      }
      return ranks;
    }

    article(chunk) {
      const { article, articles } = this.data.chunks;
      const at = article[chunk];
      return {
        title: articles.title[at], url: articles.url[at], licence: articles.licence[at],
        revision: articles.revision[at],
      };
    }

    /** Text of each question that searches look into, in lower case. */
    searchable() {
      this.haystack ??= this.data.questions.stem.map((stem, q) => {
        const own = this.data.questions.chunk[q];
        const title = own >= 0 ? this.article(own).title : "";
        const id = this.data.questions.id[q];
        return [stem, ...this.data.questions.options[q], title, id].join("\n").toLowerCase();
      });
      return this.haystack;
    }
  }

  // -- Statistics: the same as in core/statistics ------------------------------------------------

  const logFactorials = [0];
  function logFactorial(n) {
    for (let i = logFactorials.length; i <= n; i++) {
      logFactorials.push(logFactorials[i - 1] + Math.log(i));
    }
    return logFactorials[n];
  }

  /** Exact two-sided p-value of McNemar's test. */
  function mcnemar(onlyA, onlyB) {
    const n = onlyA + onlyB, least = Math.min(onlyA, onlyB);
    let tail = 0;
    for (let i = 0; i <= least; i++) {
      const log = logFactorial(n) - logFactorial(i) - logFactorial(n - i) - n * Math.LN2;
      tail += Math.exp(log);
    }
    return Math.min(1, 2 * tail);
  }

  /** Holm's step-down adjustment. */
  function holm(pValues) {
    const order = pValues.map((_, i) => i).sort((a, b) => pValues[a] - pValues[b]);
    const adjusted = new Array(pValues.length);
    let most = 0;
    order.forEach((at, done) => {
      most = Math.max(most, Math.min(1, (pValues.length - done) * pValues[at]));
      adjusted[at] = most;
    });
    return adjusted;
  }

  function wilson(correct, n, z) {
    if (!n) return [0, 1];
    const p = correct / n, scale = 1 + z * z / n, middle = p + z * z / (2 * n);
    const half = z * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    return [
      correct === 0 ? 0 : Math.max(0, (middle - half) / scale),
      correct === n ? 1 : Math.min(1, (middle + half) / scale),
    ];
  }

  /** Tango's score interval of a paired difference. */
  function pairedDifference(onlyA, onlyB, n, z) {
    if (!n) return [-1, 1];
    const score = (difference) => {
      const linear = -onlyA - onlyB + (2 * n - onlyA + onlyB) * difference;
      const constant = -onlyB * difference * (1 - difference);
      const root = Math.sqrt(Math.max(0, linear * linear - 8 * n * constant));
      const q = (root - linear) / (4 * n);
      const numerator = onlyA - onlyB - n * difference;
      const variance = n * (2 * q + difference * (1 - difference));
      if (Math.abs(numerator) < 1e-12) return 0;
      if (variance <= 1e-15) return Math.sign(numerator) * Infinity;
      return numerator / Math.sqrt(variance);
    };
    const solve = (target, low, high) => {
      for (let i = 0; i < 60; i++) {
        const middle = (low + high) / 2;
        if (score(middle) > target) low = middle; else high = middle;
      }
      return (low + high) / 2;
    };
    const estimate = (onlyA - onlyB) / n;
    return [solve(z, -1, estimate), solve(-z, estimate, 1)];
  }

  // -- Challenges --------------------------------------------------------------------------------

  /** Questions that the reader has marked, kept for this study and state of its data. */
  class Marks {
    constructor(data) {
      this.key = `kinject-challenges:${data.study}:${data.version}`;
      this.byCorpus = new Map(data.corpora.map((corpus) => [corpus.name, new Map()]));
      this.listeners = [];
      try {
        for (const [corpus, id, verdict, reason] of JSON.parse(storage.get(this.key) || "[]")) {
          this.byCorpus.get(corpus)?.set(id, { verdict, reason });
        }
      } catch { /* what was kept is not ours */ }
    }

    get(corpus, id) { return this.byCorpus.get(corpus).get(id); }

    get size() {
      return [...this.byCorpus.values()].reduce((sum, marks) => sum + marks.size, 0);
    }

    set(corpus, id, mark) {
      if (mark) this.byCorpus.get(corpus).set(id, mark);
      else this.byCorpus.get(corpus).delete(id);
      this.changed();
    }

    clear() {
      for (const marks of this.byCorpus.values()) marks.clear();
      this.changed();
    }

    changed() {
      const rows = [];
      for (const [corpus, marks] of this.byCorpus) {
        for (const [id, mark] of marks) rows.push([corpus, id, mark.verdict, mark.reason]);
      }
      storage.set(this.key, JSON.stringify(rows));
      for (const listener of this.listeners) listener();
    }
  }

  /** Accuracies and verdicts without the marked questions, by the study's own rule. */
  class Recount {
    constructor(study, marks) {
      this.study = study;
      this.out = new Uint8Array(study.n);
      const { id } = study.data.questions;
      for (let q = 0; q < study.n; q++) {
        if (marks.get(study.data.corpora[study.corpus[q]].name, id[q])) this.out[q] = 1;
      }
      this.adjusted = new Map();
      for (const pairs of study.data.families) {
        const tallies = pairs.map(([a, b]) => this.tally(a, b));
        const pValues = holm(tallies.map((t) => mcnemar(t.onlyA, t.onlyB)));
        pairs.forEach(([a, b], i) => this.adjusted.set(`${a},${b}`, pValues[i]));
      }
    }

    tally(a, b) {
      const mine = this.study.outcomes[a], other = this.study.outcomes[b];
      let onlyA = 0, onlyB = 0, n = 0;
      for (let q = 0; q < this.study.n; q++) {
        if (mine[q] === NONE || other[q] === NONE || this.out[q]) continue;
        n++;
        if (mine[q] > other[q]) onlyA++;
        else if (mine[q] < other[q]) onlyB++;
      }
      return { onlyA, onlyB, n };
    }

    accuracy(system) {
      const mine = this.study.outcomes[system];
      let correct = 0, n = 0;
      for (let q = 0; q < this.study.n; q++) {
        if (mine[q] === NONE || this.out[q]) continue;
        n++;
        correct += mine[q];
      }
      const [low, high] = wilson(correct, n, this.study.data.critical);
      return { n, correct, accuracy: n ? correct / n : 0, low, high };
    }

    difference(a, b) {
      const { onlyA, onlyB, n } = this.tally(a, b);
      const [low, high] = pairedDifference(onlyA, onlyB, n, this.study.data.critical);
      return { value: n ? (onlyA - onlyB) / n : 0, low, high, n };
    }

    /** A is better than B by the adjusted test. */
    better(a, b) {
      const { onlyA, onlyB } = this.tally(a, b);
      if (onlyA <= onlyB) return false;
      const p = this.adjusted.get(`${a},${b}`) ?? this.adjusted.get(`${b},${a}`)
        ?? mcnemar(onlyA, onlyB);
      return p < this.study.data.alpha;
    }

    holds([a, kind, b], cast) {
      if (kind.startsWith("not ")) return !this.holds([a, kind.slice(4), b], cast);
      if (kind === "better") return this.better(cast[a], cast[b]);
      if (kind === "ahead") {
        const { onlyA, onlyB } = this.tally(cast[a], cast[b]);
        return onlyA > onlyB;
      }
      return this.difference(cast[a], cast[b]).high >= this.study.data.worthwhile;
    }

    /** Gives each role to a system: the most accurate recipe, the first of equals. */
    cast(decision) {
      const best = (recipes) => recipes.reduce((found, one) => {
        const accuracy = this.accuracy(one[1]).accuracy;
        return !found || accuracy > found.accuracy ? { recipe: one[0], at: one[1], accuracy } : found;
      }, null);
      const of = (recipes, recipe) => recipes.find((one) => one[0] === recipe)?.[1];
      const ft = best(decision.ft), both = best(decision.ft_rag);
      const roles = {
        base: decision.base, rag: decision.rag, ft: ft?.at, ft_rag: both?.at,
        ft_rag_of_ft: of(decision.ft_rag, ft?.recipe), ft_of_ft_rag: of(decision.ft, both?.recipe),
      };
      // A system without an answer left has no role.
      return Object.fromEntries(Object.entries(roles).filter(
        ([, at]) => at !== undefined && at !== null && this.accuracy(at).n,
      ));
    }

    verdict(decision) {
      const cast = this.cast(decision);
      for (const { verdict, winner, needs, clauses } of this.study.data.rule) {
        if (!("base" in cast) || !(winner in cast) || needs.some((role) => !(role in cast))) continue;
        const asked = clauses.filter(([a, , b]) => a in cast && b in cast);
        if (asked.length && asked.every((clause) => this.holds(clause, cast))) return verdict;
      }
      return "not shown";
    }
  }

  const signed = (x, digits = 3) => (x < 0 ? "-" : "+") + Math.abs(x).toFixed(digits);

  /** Puts what the numbers are without the marked questions beside them. */
  function showRecount(study, marks) {
    for (const old of document.querySelectorAll(".without")) old.remove();
    if (!marks.size) return;
    const recount = new Recount(study, marks);
    const { systems, corpora, decisions } = study.data;
    const marked = (corpus) => marks.byCorpus.get(corpora[corpus].name).size;
    for (const cell of document.querySelectorAll("[data-system]")) {
      const at = Number(cell.dataset.system);
      if (!marked(systems[at].corpus)) continue;
      const { accuracy, low, high } = recount.accuracy(at);
      const text = `without: ${accuracy.toFixed(3)} [${low.toFixed(2)}, ${high.toFixed(2)}]`;
      cell.append(el("span", { class: "without" }, text));
    }
    for (const decision of decisions) {
      const place = document.querySelector(`[data-decision="${decision.key}"]`);
      const verdict = recount.verdict(decision);
      const base = decision.base, corpus = base === null ? -1 : systems[base].corpus;
      const mine = corpus < 0 ? 0 : marked(corpus);
      if (!place || (!mine && verdict === decision.verdict)) continue;
      const cast = recount.cast(decision);
      const gains = [["rag", "RAG"], ["ft", "FT"], ["ft_rag", "FT + RAG"]]
        .filter(([role]) => role in cast && "base" in cast)
        .map(([role, name]) => {
          const d = recount.difference(cast[role], cast.base);
          return `${name} ${signed(d.value)} [${signed(d.low, 2)}, ${signed(d.high, 2)}]`;
        });
      const lead = mine
        ? `With your ${mine} challenged ${mine === 1 ? "question" : "questions"} left out: `
        : "With the challenged questions of other corpora left out: ";
      place.append(el("p", { class: "without" }, lead, el("strong", {}, verdict),
        `; against base: ${gains.join("; ")}. K stays as it was chosen.`));
    }
  }

  /** A cell of CSV that a spreadsheet takes for text; `restored` in review.py takes it back. */
  function csvCell(text) {
    const safe = /^(\s*[=+\-@＝＋－＠]|[\t\r\n])/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  /** The marks of a corpus as `kinject exam review --read` takes them. */
  function reviewFile(study, marks, corpus) {
    const { questions } = study.data;
    const header = ["question_id", "verdict", "reason", "stem", ...LETTERS, "gold"];
    const rows = [header];
    const mine = marks.byCorpus.get(study.data.corpora[corpus].name);
    for (let q = Math.max(0, study.start[corpus]); q < study.n && study.corpus[q] === corpus; q++) {
      const mark = mine.get(questions.id[q]);
      if (!mark) continue;
      const reason = `${mark.verdict}: ${mark.reason.trim() || "challenged in the report"}`;
      const options = [...LETTERS].map((_, i) => questions.options[q][i] ?? "");
      rows.push([
        questions.id[q], "reject", reason, questions.stem[q], ...options, LETTERS[study.gold[q]],
      ]);
    }
    return "\ufeff" + rows.map((row) => row.map(csvCell).join(",") + "\r\n").join("");
  }

  function download(name, text) {
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    const link = el("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  function setUpChallenges(study, marks) {
    const bar = $("challenges"), profile = bar.dataset.profile;
    const show = () => {
      bar.hidden = marks.size === 0;
      const verdicts = [...marks.byCorpus.values()].flatMap((m) => [...m.values()]);
      const wrong = verdicts.filter((m) => m.verdict === "wrong").length;
      $("challenged").textContent = `${marks.size} challenged: ${wrong} wrong, `
        + `${marks.size - wrong} ambiguous.`;
      const files = study.data.corpora.map((corpus, c) => {
        if (!marks.byCorpus.get(corpus.name).size) return null;
        if (!corpus.written) {
          return el("p", {}, `${corpus.name}: its exam is published, not written for this study. `
            + "The numbers above are as far as a challenge goes.");
        }
        const name = `challenges-${corpus.name}.csv`;
        const button = el("button", { type: "button" }, `Download ${name}`);
        button.addEventListener("click", () => download(name, reviewFile(study, marks, c)));
        return el("p", {}, button, " then ", el("code", {},
          `kinject exam review --profile ${profile} --corpus ${corpus.name} --read ${name}`));
      }).filter(Boolean);
      const written = files.some((file) => file.querySelector("button"));
      if (written) {
        files.push(el("p", {}, "and ", el("code", {}, `kinject run --profile ${profile}`),
          ", which asks no model anew: answers to all other questions are taken over."));
      }
      $("challenge-files").replaceChildren(...files);
      showRecount(study, marks);
    };
    $("clear-marks").addEventListener("click", () => { marks.clear(); $("explorer").focus(); });
    marks.listeners.push(show);
    show();
  }

  // -- The explorer ------------------------------------------------------------------------------

  const PRESETS = [
    // Name, what A shall be, what B shall be, first and second system.
    ["RAG right, FT wrong", "right", "wrong", "rag", "ft"],
    ["FT right, RAG wrong", "right", "wrong", "ft", "rag"],
    ["RAG right, base wrong", "right", "wrong", "rag", "base"],
    ["base right, RAG wrong", "right", "wrong", "base", "rag"],
    ["FT right, base wrong", "right", "wrong", "ft", "base"],
    ["base right, FT wrong", "right", "wrong", "base", "ft"],
    ["FT + RAG right, RAG wrong", "right", "wrong", "ft_rag", "rag"],
    ["RAG right, FT + RAG wrong", "right", "wrong", "rag", "ft_rag"],
    ["RAG wrong, FT wrong", "wrong", "wrong", "rag", "ft"],
  ];

  class Explorer {
    constructor(study, marks) {
      this.study = study;
      this.marks = marks;
      this.form = $("filters");
      this.field = this.form.elements;
      this.sort = { column: "place", up: true };
      this.page = 0;
      this.hits = [];
      this.fill();
      this.form.addEventListener("submit", (event) => event.preventDefault());
      this.form.addEventListener("input", (event) => this.changed(event.target.name));
      this.form.addEventListener("reset", () => setTimeout(() => {
        this.fillSystems();
        this.filter();
      }));
      for (const head of document.querySelectorAll("#list th[data-sort] button")) {
        head.addEventListener("click", () => this.sortBy(head.parentElement.dataset.sort));
      }
      $("before").addEventListener("click", () => this.turn(-1));
      $("after").addEventListener("click", () => this.turn(1));
      $("close").addEventListener("click", () => {
        const shown = this.shown;
        history.pushState(null, "", location.pathname + location.search + "#explorer");
        this.follow();
        const link = document.querySelector(`#list a[data-question="${shown}"]`);
        (link ?? $("hits")).focus();
      });
      this.marks.listeners.push(() => this.filter(this.page));
      window.addEventListener("hashchange", () => this.follow());
      this.filter();
      this.follow();
    }

    get data() { return this.study.data; }

    fill() {
      const { corpora, conditions, questions } = this.data;
      const option = (value, text) => el("option", { value }, text);
      this.field.corpus.append(...corpora.map((corpus, c) => option(c, corpus.name)));
      const models = [...new Set(conditions.map((c) => c.model))];
      this.field.model.append(...models.map((model) => option(model, model)));
      const strata = [...new Set(questions.stratum)].filter(Boolean).sort();
      this.field.stratum.append(...strata.map((name) => option(name, name)));
      this.field.stratum.closest("label").hidden = !strata.length;
      this.field.preset.append(...PRESETS.map(([name], i) => option(i, name)));
      this.fillSystems();
    }

    /** Systems that answer the chosen corpus with the chosen model, the tables' first. */
    fillSystems() {
      const corpus = this.field.corpus.value, model = this.field.model.value;
      this.choices = new Map(); // key -> {name, method, main, at: corpus -> system}
      this.data.systems.forEach((system, at) => {
        if (system.model !== model || (corpus !== "" && system.corpus !== Number(corpus))) return;
        const name = system.name + (this.study.several ? `, ${system.shots}-shot` : "");
        const choice = this.choices.get(name)
          ?? { name, method: system.method, main: system.main, shots: system.shots, at: new Map() };
        choice.at.set(system.corpus, at);
        this.choices.set(name, choice);
      });
      const order = [...this.choices.values()].sort((a, b) => b.main - a.main || a.shots - b.shots);
      for (const [field, method] of [[this.field.a, "rag"], [this.field.b, "ft"]]) {
        const before = field.value;
        field.replaceChildren(...order.map((c) => el("option", { value: c.name }, c.name)));
        if (this.choices.has(before)) field.value = before;
        else field.value = (order.find((c) => c.method === method) ?? order[0])?.name ?? "";
      }
      this.fillPresets();
    }

    /** Pairs of systems that are both there; the others cannot be chosen, nor stay chosen. */
    fillPresets() {
      const { preset } = this.field;
      const before = preset.value;
      PRESETS.forEach(([, , , a, b], i) => {
        const there = Boolean(this.best(a) && this.best(b));
        const option = preset.querySelector(`option[value="${i}"]`);
        option.hidden = option.disabled = !there;
        if (!there && before === String(i)) {
          preset.value = "";
          this.field.a_is.value = this.field.b_is.value = "any";
        }
      });
      if (preset.value !== "") this.preset();
    }

    /** Name of a method's system that the tables show, with the fewest examples. */
    best(method) {
      const mine = [...this.choices.values()].filter((c) => c.method === method && c.main);
      const shots = Math.min(...mine.map((c) => c.shots));
      return mine.find((c) => c.shots === shots)?.name;
    }

    changed(name) {
      if (name === "corpus" || name === "model") this.fillSystems();
      if (name === "preset" && this.field.preset.value !== "") this.preset();
      if (["a", "b", "a_is", "b_is"].includes(name)) this.field.preset.value = "";
      this.filter();
    }

    preset() {
      const [, aIs, bIs, a, b] = PRESETS[Number(this.field.preset.value)];
      this.field.a.value = this.best(a);
      this.field.b.value = this.best(b);
      this.field.a_is.value = aIs;
      this.field.b_is.value = bIs;
    }

    /** Outcomes of a chosen system on all questions, whatever their corpus. */
    outcomesOf(name) {
      const choice = this.choices.get(name);
      const found = new Int8Array(this.study.n).fill(NONE);
      for (const at of choice ? choice.at.values() : []) {
        const mine = this.study.outcomes[at];
        for (let q = 0; q < found.length; q++) if (mine[q] !== NONE) found[q] = mine[q];
      }
      return found;
    }

    /** Picks and sorts the questions, and shows a page of them. */
    filter(page = 0) {
      const began = performance.now();
      const { study, field } = this;
      const corpus = field.corpus.value === "" ? -1 : Number(field.corpus.value);
      const wants = { right: RIGHT, wrong: WRONG };
      const aIs = wants[field.a_is.value], bIs = wants[field.b_is.value];
      const stratum = field.stratum.value, passage = field.passage.value;
      const words = field.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      const haystack = words.length ? study.searchable() : null;
      const { questions, corpora } = this.data;
      this.a = this.outcomesOf(field.a.value);
      this.b = this.outcomesOf(field.b.value);
      this.hits = [];
      for (let q = 0; q < study.n; q++) {
        if (corpus >= 0 && study.corpus[q] !== corpus) continue;
        if (aIs !== undefined && this.a[q] !== aIs) continue;
        if (bIs !== undefined && this.b[q] !== bIs) continue;
        if (stratum && questions.stratum[q] !== stratum) continue;
        if (passage === "found" && study.passage[q] < 1) continue;
        if (passage === "missed" && study.passage[q] !== 0) continue;
        if (haystack && !words.every((word) => haystack[q].includes(word))) continue;
        if (field.marked.checked
          && !this.marks.get(corpora[study.corpus[q]].name, questions.id[q])) continue;
        this.hits.push(q);
      }
      this.arrange();
      this.page = Math.min(page, Math.max(0, Math.ceil(this.hits.length / PAGE) - 1));
      this.show();
      const hits = $("hits"), all = study.n.toLocaleString("en");
      hits.textContent = `${this.hits.length.toLocaleString("en")} of ${all} questions`;
      hits.dataset.ms = (performance.now() - began).toFixed(1);
    }

    sortBy(column) {
      this.sort = { column, up: this.sort.column === column ? !this.sort.up : true };
      for (const head of document.querySelectorAll("#list th[data-sort]")) {
        if (head.dataset.sort === column) {
          head.setAttribute("aria-sort", this.sort.up ? "ascending" : "descending");
        } else head.removeAttribute("aria-sort");
      }
      this.filter();
    }

    arrange() {
      const { column, up } = this.sort;
      if (column === "place") {
        if (!up) this.hits.reverse();
        return;
      }
      const { questions } = this.data;
      const key = {
        question: (q) => questions.stem[q].toLowerCase(),
        a: (q) => this.marginOf(this.field.a.value, q) ?? this.a[q] * 1e6,
        b: (q) => this.marginOf(this.field.b.value, q) ?? this.b[q] * 1e6,
        passage: (q) => (this.study.passage[q] > 0 ? this.study.passage[q] : 1e6),
        stratum: (q) => questions.stratum[q],
      }[column];
      const keys = new Map(this.hits.map((q) => [q, key(q)]));
      const sign = up ? 1 : -1;
      this.hits.sort((p, q) => {
        const [x, y] = [keys.get(p), keys.get(q)];
        return x < y ? -sign : x > y ? sign : p - q;
      });
    }

    marginOf(name, q) {
      const at = this.choices.get(name)?.at.get(this.study.corpus[q]);
      return at === undefined ? null : this.study.margin(this.data.systems[at], q);
    }

    turn(step) {
      this.page += step;
      this.show();
      $("list").scrollIntoView({ block: "nearest" });
    }

    /** Shows one page of the list. */
    show() {
      const { questions, corpora } = this.data;
      const from = this.page * PAGE, rows = this.hits.slice(from, from + PAGE);
      const outcome = (outcomes, name, q) => {
        if (outcomes[q] === NONE) return el("td", {}, "-");
        const margin = this.marginOf(name, q);
        const said = outcomes[q] === RIGHT ? "right" : "wrong";
        return el("td", { class: said }, said, margin === null ? ""
          : el("span", { class: "soft" }, ` ${signed(margin, 2)}`));
      };
      $("rows").replaceChildren(...rows.map((q) => {
        const corpus = corpora[this.study.corpus[q]].name, id = questions.id[q];
        const mark = this.marks.get(corpus, id);
        const stem = questions.stem[q];
        const link = el("a", { href: this.address(q), "data-question": id },
          stem.length > 160 ? `${stem.slice(0, 160)} …` : stem);
        const rank = this.study.passage[q];
        return el("tr", { class: mark ? "marked" : "" },
          el("th", { scope: "row" }, link, mark ? el("span", { class: "mark" }, mark.verdict) : ""),
          el("td", {}, corpus),
          outcome(this.a, this.field.a.value, q),
          outcome(this.b, this.field.b.value, q),
          el("td", { class: "n" }, rank > 0 ? String(rank) : rank === 0 ? "missed" : "-"),
          el("td", {}, questions.stratum[q] || "-"));
      }));
      $("head-a").textContent = this.field.a.value || "First";
      $("head-b").textContent = this.field.b.value || "Second";
      const pages = Math.max(1, Math.ceil(this.hits.length / PAGE));
      $("pages").textContent = `Page ${this.page + 1} of ${pages}`;
      $("before").disabled = this.page === 0;
      $("after").disabled = this.page + 1 >= pages;
    }

    /** Address of a question; its corpus is named where several have it. */
    address(q) {
      const { id } = this.data.questions;
      const twin = id.indexOf(id[q]) !== q;
      const corpus = this.data.corpora[this.study.corpus[q]].name;
      return `#q=${encodeURIComponent(id[q])}`
        + (twin ? `&corpus=${encodeURIComponent(corpus)}` : "");
    }

    /** Shows what the address asks for: after loading, a click, back and forward. */
    follow() {
      const asked = new URLSearchParams(location.hash.slice(1));
      const id = asked.get("q");
      this.shown = id;
      $("question").hidden = !id;
      if (!id) return;
      const corpus = this.data.corpora.findIndex((c) => c.name === asked.get("corpus"));
      let q = this.data.questions.id.indexOf(id);
      while (q >= 0 && corpus >= 0 && this.study.corpus[q] !== corpus) {
        q = this.data.questions.id.indexOf(id, q + 1);
      }
      if (q < 0) this.unknown(id);
      else this.detail(q);
      const heading = $("stem");
      heading.scrollIntoView({ block: "start" });
      heading.focus({ preventScroll: true });
    }

    unknown(id) {
      $("stem").textContent = "No such question";
      $("detail").replaceChildren(el("p", {},
        `No scored question has the id ${id}. It may have been retired since, or left out here.`));
    }

    // -- One question ------------------------------------------------------------------------------

    detail(q) {
      const { questions, corpora } = this.data;
      const corpus = corpora[this.study.corpus[q]].name;
      $("stem").textContent = questions.stem[q];
      const facts = [corpus, questions.stratum[q], `id ${questions.id[q]}`].filter(Boolean);
      $("detail").replaceChildren(
        el("p", { class: "soft" }, facts.join(" · ")),
        this.optionList(q),
        this.challenge(q, corpus),
        el("h4", {}, "Answers"),
        this.answers(q),
        ...this.ownPassage(q),
        ...this.inFront(q),
      );
    }

    optionList(q) {
      const gold = this.study.gold[q];
      return el("ol", { class: "options" }, ...this.data.questions.options[q].map((text, i) =>
        el("li", { class: i === gold ? "gold" : "" }, text,
          i === gold ? el("strong", {}, " (counted as right)") : "")));
    }

    challenge(q, corpus) {
      const id = this.data.questions.id[q];
      const mark = this.marks.get(corpus, id);
      const radio = (value, text) => el("label", {},
        el("input", { type: "radio", name: "mark", value, checked: (mark?.verdict ?? "") === value }),
        ` ${text}`);
      const reason = el("input", {
        type: "text", name: "reason", maxlength: 300, value: mark?.reason ?? "",
        autocomplete: "off",
      });
      const box = el("fieldset", { class: "challenge" }, el("legend", {}, "Challenge this question"),
        radio("", "it is fine"), radio("wrong", "wrong: its key is not right"),
        radio("ambiguous", "ambiguous: several options can be right"),
        el("label", { class: "wide" }, "Reason ", reason));
      const apply = () => {
        const verdict = box.querySelector("input[name=mark]:checked")?.value ?? "";
        this.marks.set(corpus, id, verdict ? { verdict, reason: reason.value } : null);
      };
      box.addEventListener("change", apply);
      return box;
    }

    /** Every system's answer, the tables' first; the rest can be unfolded. */
    answers(q) {
      const corpus = this.study.corpus[q];
      const stands = new Set();
      for (const system of this.data.systems) {
        if (system.corpus === corpus && system.main) stands.add(this.study.standing(system, q));
      }
      const mine = this.data.conditions.map((_, at) => at)
        .filter((at) => this.data.conditions[at].corpus === corpus);
      const shown = mine.filter((at) => stands.has(at)), rest = mine.filter((at) => !stands.has(at));
      const table = (conditions, caption) => el("div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
        el("table", {}, el("caption", {}, caption),
          el("thead", {}, el("tr", {}, ...["Model", "Way", "Shots", "Choice", "It is",
            ...this.data.questions.options[q].map((_, i) => `ln p(${LETTERS[i]})`), "Answer id"]
            .map((head) => el("th", { scope: "col" }, head)))),
          el("tbody", {}, ...conditions.map((at) => this.answerRow(at, q)))));
      const found = el("div", {}, table(shown, "Answers under the K that was chosen without this question"));
      if (rest.length) {
        const details = el("details", {},
          el("summary", {}, `${rest.length} more: every K, number of examples and variant`));
        // Built when it is opened: most readers never do.
        details.addEventListener("toggle", () => {
          if (details.open && details.children.length === 1) {
            details.append(table(rest, "Answers under every other condition"));
          }
        });
        found.append(details);
      }
      return found;
    }

    answerRow(at, q) {
      const condition = this.data.conditions[at];
      const choice = this.study.choice(condition, q), right = choice === this.study.gold[q];
      const logliks = this.study.logliks(condition, q);
      const id = this.study.answerId(condition, q);
      const copy = el("button", { type: "button", class: "small", "aria-label": `Copy the command that traces answer ${id}` }, "copy");
      copy.addEventListener("click", () => this.copy(copy, `kinject audit --answer ${id}`));
      return el("tr", {},
        el("th", { scope: "row" }, condition.model),
        el("td", {}, condition.name),
        el("td", { class: "n" }, String(condition.shots)),
        el("td", {}, choice < 0 ? "-" : LETTERS[choice]),
        choice < 0 ? el("td", {}, "-")
          : el("td", { class: right ? "right" : "wrong" }, right ? "right" : "wrong"),
        ...this.data.questions.options[q].map((_, i) => el("td",
          { class: i === choice ? "n chosen" : "n" }, logliks ? logliks[i].toFixed(2) : "-")),
        el("td", {}, id ? el("code", {}, id) : "-", id ? " " : "", id ? copy : ""));
    }

    async copy(button, text) {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        button.replaceWith(el("code", {}, text)); // to be copied by hand
      }
    }

    ownPassage(q) {
      const own = this.data.questions.chunk[q];
      if (own < 0) return [];
      return [el("h4", {}, "Written from"), el("div", { class: "passage" }, this.source(own),
        this.passageText(own))];
    }

    /** Chunks that were in front of the question, by retriever. */
    inFront(q) {
      const own = this.data.questions.chunk[q], corpus = this.study.corpus[q];
      const overtaken = new Map(this.data.overtaken.filter((o) => o.corpus === corpus)
        .map((o) => [o.retriever, o.ways]));
      const retrievers = new Set([...Object.keys(this.data.retrieved), ...overtaken.keys()]);
      return [...retrievers].flatMap((retriever) => {
        const columns = this.data.retrieved[retriever];
        const chunks = columns ? columns.chunks[q] : [], ways = overtaken.get(retriever);
        const list = el("ol", { class: "passages" },
          ...chunks.map((chunk, i) => el("li", { class: "passage" },
            el("p", {}, `score ${columns.scores[q][i]}, in front where K is at least ${i + 1}`,
              chunk === own ? el("strong", {}, "; a hit: the passage it was written from") : ""),
            this.source(chunk),
            el("details", {}, el("summary", {}, "Text"), this.passageText(chunk)))));
        if (!chunks.length && !ways) return [];
        return [el("h4", {}, `Retrieved by ${retriever}`),
          ...(ways ? [this.noLongerThere(corpus, ways, chunks.length > 0)] : []),
          ...(chunks.length ? [list] : [])];
      });
    }

    /** Says that some answers read passages that have been replaced since, and how to mend it. */
    noLongerThere(corpus, ways, others) {
      return el("p", { class: "overtaken" },
        `What was in front of the question for ${ways.join("; ")} is no longer there: `,
        el("code", {}, `retrieved/${this.data.corpora[corpus].name}`),
        " has changed since it was read. ", el("code", {}, "kinject run"), " asks again.",
        others ? " These passages were in front of the others:" : "");
    }

    passageText(chunk) {
      return el("blockquote", {}, this.data.chunks.text[chunk] || "(its text was left out here)");
    }

    /** Title, section, revision and licence; a link where the address is one that may be followed. */
    source(chunk) {
      const { title, url, licence, revision } = this.study.article(chunk);
      const section = this.data.chunks.section[chunk];
      const name = (title || "unknown article") + (section ? ` › ${section}` : "");
      const safe = /^https?:\/\//i.test(url);
      return el("p", {},
        safe ? el("a", { href: url, rel: "noopener noreferrer nofollow", target: "_blank" }, name)
          : name,
        el("span", { class: "soft" },
          `${revision ? `, revision ${revision}` : ""}${licence ? `, ${licence}` : ""}`));
    }
  }

  // -- Start -------------------------------------------------------------------------------------

  async function start() {
    setUpTheme();
    setUpPrint();
    setUpCosts();
    if (!$("data")) return;
    if (!("DecompressionStream" in window)) {
      $("hits").textContent = "This browser is too old to unpack the questions.";
      return;
    }
    const study = new Study(await unpack());
    const marks = new Marks(study.data);
    $("tools").hidden = false;
    const explorer = new Explorer(study, marks);
    setUpChallenges(study, marks);
    // For tests and for the curious: the numbers that the page has.
    window.kinject = { study, marks, explorer, recount: () => new Recount(study, marks) };
    document.documentElement.dataset.ready = "true";
  }

  start();
})();
