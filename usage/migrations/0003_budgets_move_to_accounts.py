"""Sums of the records that are there, and each user's budget in an account."""

from django.db import migrations

FORWARD = """
UPDATE usage_usagerecord SET gco2eq = round(((kgco2eq_min + kgco2eq_max) / 2 * 1000)::numeric, 6)
WHERE kgco2eq_max > 0;

UPDATE usage_usagerecord SET organization_name = organization.name
FROM accounts_organization AS organization WHERE organization.id = organization_id;

INSERT INTO usage_dailyusage (day, user_id, key_id, organization_id, router_id, provider_id, endpoint, user_email,
    key_name, organization_name, router_name, provider_model_name, requests, errors, prompt_tokens, completion_tokens, cost,
    gco2eq, kwh, records_deleted)
SELECT (created AT TIME ZONE 'UTC')::date, user_id, key_id, organization_id, router_id, provider_id, endpoint,
    max(user_email), max(key_name), max(organization_name), max(router_name), max(provider_model_name), count(*),
    count(*) FILTER (WHERE status NOT BETWEEN 200 AND 299), sum(prompt_tokens), sum(completion_tokens), sum(cost),
    sum(gco2eq), sum((kwh_min + kwh_max) / 2), false
FROM usage_usagerecord GROUP BY 1, 2, 3, 4, 5, 6, 7;

INSERT INTO usage_account (user_id, granted, spent, reserved, carbon_spent, carbon_reserved, period, time_zone,
    refill_day, refill_hour)
SELECT accounts_user.id, accounts_user.budget + coalesce(sum(cost), 0), coalesce(sum(cost), 0), 0,
    coalesce(sum(gco2eq), 0), 0, '', 'UTC', 1, 0
FROM accounts_user LEFT JOIN usage_usagerecord ON usage_usagerecord.user_id = accounts_user.id
GROUP BY accounts_user.id
HAVING accounts_user.budget IS NOT NULL OR sum(cost) > 0 OR sum(gco2eq) > 0;
"""

BACKWARD = """
UPDATE accounts_user SET budget = least(greatest(granted - spent, 0), 999999999999)
FROM usage_account WHERE usage_account.user_id = accounts_user.id AND granted IS NOT NULL;
DELETE FROM usage_account;
DELETE FROM usage_dailyusage;
"""


class Migration(migrations.Migration):
    dependencies = [("usage", "0002_ledger")]

    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
